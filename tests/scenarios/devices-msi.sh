#!/bin/sh
# A disk controller works with MSI in a guest of its own, also after rebinds and a hot replug; edu, which no driver is for, gets MSI.
#: suite trixie
#: device ahci,id=ahci1,addr=7
#: device ide-hd,drive=d0,bus=ahci1.0
#: device edu,addr=8
#: timeout 700
. /rig/scenarios/lib.sh

dmesg -c >/dev/null
device ahci 07.0 "msi 1" /dev/sda ahci sd_mod
same_in_dom0 ahci /dev/sda ahci sd_mod

BDF=0000:00:08.0
guest_config edu
check "edu: bulkhead run" bulkhead run /root/edu.cfg --device $BDF
equal "edu: interrupts by status" "intx 1" "$(mode_of $BDF)"
in_guest edu "lspci -vvn -s 00:00.0 2>/dev/null" >/tmp/lspci
equal "edu: ids in the guest" "1234:11e8" "$(awk 'NR == 1 { print $3 }' /tmp/lspci)"
check "edu: MSI with one vector, off" grep -E 'MSI: Enable- Count=1/1' /tmp/lspci
registers=$(sed -n 's/.*Region 0: Memory at \([0-9a-f]*\) .*/0x\1/p' /tmp/lspci)
equal "edu: its register of identification" 0x010000ED "$(in_guest edu "devmem $registers 32")"
equal "edu: its register that inverts what is written" 0xEDCBA987 \
    "$(in_guest edu "devmem $((registers + 4)) 32 0x12345678; devmem $((registers + 4)) 32")"

# The driver of another device is made to take it: that turns MSI on, looks closer, and gives up.
log=$(stub_log edu-bulkhead)
in_guest edu "modprobe e1000e; echo 1234 11e8 >/sys/bus/pci/drivers/e1000e/new_id
    for round in 1 2 3 4 5; do echo 0000:00:00.0 >/sys/bus/pci/drivers/e1000e/bind; done" >/dev/null 2>&1
check "edu: a driver gets MSI" wait-log "$log" "$BDF: MSI turned on, pirq" 5
msi() { bulkhead status --json | jq -r '.stubs[0].served.counters | "\(.msi_enabled) \(.msi_disabled)"'; }
equal "edu: MSI was turned on and off" "6 6" "$(msi)"
replug edu "devmem $registers 32" $BDF
equal "edu: its register of identification after the replug" 0x010000ED "$(cat /tmp/lines)"
equal "edu: the same driver has tried it again" "1 1" "$(msi)"
check "edu: bulkhead destroy" bulkhead destroy edu
quiet $BDF
equal "complaints in dom0" "" "$(complaints)"
success
