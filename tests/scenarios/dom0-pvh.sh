#!/bin/sh
# A PVH dom0, which cannot give away configuration pages: nothing is passed through, and the reason is named.
#: all
#: suite trixie
#: device edu,addr=6
#: cpu qemu64,+rdrand,+svm,+npt
#: xen dom0=pvh
#: timeout 400
. /rig/scenarios/lib.sh
EDU=0000:00:06.0

equal "dom0's kernel says" PVH "$(cat /sys/hypervisor/guest_type)"
guest_config g1
refused "check" "dom0 is of type PVH" bulkhead check $EDU
refused "run" "dom0 is of type PVH.*Boot Xen without dom0=pvh" bulkhead run /root/g1.cfg --device $EDU
refused "seize" "dom0 is of type PVH" bulkhead seize $EDU
check "no guest was made" sh -c "! xl domid g1"
success
