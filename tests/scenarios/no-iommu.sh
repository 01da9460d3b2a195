#!/bin/sh
# A host without IOMMU: nothing is passed through, and the reason is named.
#: device edu,addr=6
#: xen iommu=0
. /rig/scenarios/lib.sh

guest_config g1
refused "a host without IOMMU" "IOMMU" bulkhead run /root/g1.cfg --device 0000:00:06.0
check "no guest was made" sh -c "! xl domid g1"
check "no device was seized" sh -c "[ -z \"\$(xl pci-assignable-list)\" ]"
success
