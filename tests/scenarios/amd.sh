#!/bin/sh
# A host with AMD's IOMMU: a guest uses its card, loses it, has it again; what is reserved for DMA is read from AMD's table.
#: all
#: suite trixie
#: device amd-iommu,intremap=on
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
. /rig/scenarios/lib.sh
CARD=0000:00:05.0 EDU=0000:00:06.0

check "the IOMMU is AMD's" sh -c "xl dmesg | grep -i 'AMD-Vi'"
check "its table is there, and Intel's is not" sh -c "cd /sys/firmware/acpi/tables && test -e IVRS && ! test -e DMAR && ! test -e RMAD"
check "bulkhead check" bulkhead check $CARD $EDU
cat /tmp/check
check "reserved memory is known: none" sh -c "bulkhead check --json $CARD | jq -e '.devices[0].reserved == []'"
mkdir /tmp/tables; cat /sys/firmware/acpi/tables/MCFG >/tmp/tables/MCFG
check "without the table it is unknown, which is not none" unshare -m sh -c "mount --bind /tmp/tables /sys/firmware/acpi/tables &&
    bulkhead check --json $CARD | jq -e '.devices[0].reserved == null'"
guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $CARD --device $EDU
check "e1000e comes up" network_up g1
equal "MSI-X vectors" 3 "$(in_guest g1 "grep -c pcifront-msi-x /proc/interrupts")"
equal "pings lost of 10" 0 "$(pings_lost g1 10)"
check "detach of the other" bulkhead detach $EDU
equal "pings lost of 5" 0 "$(pings_lost g1 5)"
check "attach" bulkhead attach g1 --device $EDU
check "bulkhead destroy" bulkhead destroy g1
check "nothing is left" sh -c "bulkhead status --json | jq -e '.stubs == [] and .quarantined == []'"
equal "complaints in dom0" "" "$(complaints)"
success
