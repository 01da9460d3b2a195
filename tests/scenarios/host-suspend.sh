#!/bin/sh
# The host is suspended to memory (ACPI S3). Its devices lose their state, and work for their guests again afterwards: with
# MSI-X by their driver, with INTx at least after a rebind.
#: all
#: device e1000e,netdev=n0,addr=5
#: device rtl8139,netdev=n1,addr=6
#: timeout 240
#: timeout-all 400
. /rig/scenarios/lib.sh
NIC=0000:00:05.0
OLD=0000:00:06.0
HOST_BRIDGE=00:00.0
ISA_BRIDGE=00:1f.0
LOG=/var/log/bulkhead/serve.log
AGAIN="recovered by a reset"

# host_sleeps SECONDS
host_sleeps() {
    echo 0 >/sys/class/rtc/rtc0/wakealarm
    echo "+$1" >/sys/class/rtc/rtc0/wakealarm
    # QEMU's firmware sets up what it does at boot: the chipset's ECAM area and its registers of power management. Other
    # firmware does so when the host comes back too.
    ecam=$(setpci -s $HOST_BRIDGE 60.l) ports=$(setpci -s $ISA_BRIDGE 40.l) power=$(setpci -s $ISA_BRIDGE 44.b)
    check "suspend to memory" sh -c "echo mem >/sys/power/state &&
        setpci -s $HOST_BRIDGE 60.l=$ecam && setpci -s $ISA_BRIDGE 40.l=$ports 44.b=$power"
}
# comes_to COUNT BDF OUTCOME: so many suspends of the device have had this outcome, and status tells of the last one.
comes_to() {
    [ "$(grep -cF "$2: suspend of the host: $3" $LOG)" = "$1" ] &&
        [ "$(bulkhead status --json | jq -r --arg bdf "$2" '.stubs[].served.errors[] | select(.bdf == $bdf) | .last')" = "suspend of the host: $3" ]
}
# Registers that a suspend clears: COMMAND, the addresses, the interrupt line.
registers() { setpci -s "$1" COMMAND BASE_ADDRESS_0 BASE_ADDRESS_1 BASE_ADDRESS_2 BASE_ADDRESS_3 INTERRUPT_LINE; }
link_up() { in_guest "$1" "for i in \$(seq 50); do [ \"\$(cat /sys/class/net/eth0/carrier)\" = 1 ] && exit 0; usleep 200000; done; exit 1"; }

grep -q deep /sys/power/mem_sleep || skip "dom0's kernel cannot suspend to memory here"
guest_config g1
check "g1: bulkhead run" bulkhead run /root/g1.cfg --device $NIC
check "g1: e1000e comes up" network_up g1
guest_config g2
# Terms for errors: they do not count for a suspend.
check "g2: bulkhead run" bulkhead run /root/g2.cfg --device $OLD,aer=destroy
check "g2: 8139cp comes up" network_up g2 8139cp
equal "g1: pings lost of 10" 0 "$(pings_lost g1 10 0.1)"
equal "g2: pings lost of 10" 0 "$(pings_lost g2 10 0.1)"
bound=$(in_guest g1 "cat /sys/class/net/eth0/ifindex; grep -c pcifront-msi-x /proc/interrupts")
registers $NIC >/tmp/nic
registers $OLD >/tmp/old

for round in $([ "$ALL" ] && echo 1 2 3 || echo 1); do
    host_sleeps 5
    within 30 "$round: g1's driver has set the card up again" comes_to "$round" $NIC "$AGAIN"
    check "$round: g1's link comes up again" link_up g1
    equal "$round: g1: pings lost of 20" 0 "$(pings_lost g1 20 0.1)"
    equal "$round: g1: the same interface, as many vectors" "$bound" \
        "$(in_guest g1 "cat /sys/class/net/eth0/ifindex; grep -c pcifront-msi-x /proc/interrupts")"
    check "$round: g1's card has MSI-X" sh -c "lspci -vv -s $NIC 2>/dev/null | grep -q 'MSI-X: Enable+ Count=5 Masked-'"
    registers $NIC | check "$round: its registers are as they were" cmp /tmp/nic -

    # 8139cp handles no resets.
    within 30 "$round: status says that g2's driver does not" comes_to "$round" $OLD \
        "the guest's driver says: no handler: if the guest has a driver for it, unbind it there and bind it again"
    check "$round: g2 lives, and binds its driver again" in_guest g2 \
        "cd /sys/bus/pci/drivers/8139cp && echo 0000:00:00.0 >unbind && echo 0000:00:00.0 >bind"
    check "$round: g2's card comes up" network_up g2 8139cp
    equal "$round: g2: pings lost of 20" 0 "$(pings_lost g2 20 0.1)"
    registers $OLD | check "$round: its registers are as they were" cmp /tmp/old -
done

# A service that is started after the suspend restores the devices too.
launcher=$(launcher_pid)
kill -9 "$launcher"
within 10 "no service" sh -c "! kill -0 $launcher"
host_sleeps 5
bulkhead serve >>$LOG 2>&1 &
within 30 "g1's driver has set the card up again for it" comes_to $((round + 1)) $NIC "$AGAIN"
check "g1's link comes up again" link_up g1
equal "g1: pings lost of 20" 0 "$(pings_lost g1 20 0.1)"
equal "what is still to be done" "" "$(xenstore-ls /local/domain/0/bulkhead/suspended 2>/dev/null)"
equal "complaints in the stub" "" "$(grep -E 'WARN|ERROR' "$(stub_log g1-bulkhead)")"
success
