#!/bin/sh
# Xen with xsm=silo, where guest and stub cannot share memory: nothing is passed through, and the reason is named.
#: suite trixie
#: device edu,addr=6
#: xen xsm=silo
. /rig/scenarios/lib.sh
EDU=0000:00:06.0

xl dmesg | grep -i -m 2 -E 'xsm|silo'
guest_config g1
refused "check" "xsm=silo, which keeps a guest and its stub from sharing" bulkhead check $EDU
refused "run" "xsm=silo.*boot Xen without that option" bulkhead run /root/g1.cfg --device $EDU
refused "seize" "xsm=silo" bulkhead seize $EDU
check "no guest was made" sh -c "! xl domid g1"
check "no device was seized" sh -c "[ -z \"\$(xl pci-assignable-list)\" ]"
success
