#!/bin/sh
# Ten guests in a row are destroyed with MSI-X on: the device is quiet each time, the next guest works, nothing leaks.
#: device e1000e,netdev=n0,addr=5
#: timeout 400
. /rig/scenarios/lib.sh
BDF=0000:00:05.0

control_bits() { setpci -s $BDF COMMAND; }

round() {
    guest_config "g$1"
    check "round $1: bulkhead run" bulkhead run "/root/g$1.cfg" --device $BDF
    check "round $1: e1000e comes up" network_up "g$1"
    equal "round $1: MSI-X vectors" 3 "$(in_guest "g$1" "grep -c pcifront-msi-x /proc/interrupts")"
    equal "round $1: pings lost of 5" 0 "$(pings_lost "g$1" 5)"
    equal "round $1: bus master and MSI-X while it runs" "4 +" \
        "$((0x$(control_bits) & 4)) $(lspci -vv -s $BDF 2>/dev/null | sed -n 's/.*MSI-X: Enable\([-+]\).*/\1/p')"
    [ "$1" != 0 ] || inventory >/tmp/during
    check "round $1: xl destroy" xl destroy "g$1"
    within 10 "round $1: the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
    equal "round $1: bus master and MSI-X afterwards" "0 -" \
        "$((0x$(control_bits) & 4)) $(lspci -vv -s $BDF 2>/dev/null | sed -n 's/.*MSI-X: Enable\([-+]\).*/\1/p')"
    equal "round $1: the device answers" "8086:10d3" "$(lspci -n -s $BDF | awk '{ print $3 }')"
}

round 0
within 10 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
sleep 1
inventory >/tmp/before
cat /tmp/before
# An inventory that sees nothing while a guest runs would not see a leak either.
equal "counts that see a running guest" 4 "$(grep -cE '^(message|event|grants|xenstore).*: [1-9]' /tmp/during)"
for number in 1 2 3 4 5 6 7 8 9 10; do
    round $number
done
within 10 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
sleep 1
inventory >/tmp/after
diff /tmp/before /tmp/after || failure "something leaks"
check "reset was done and is told" grep -iE "reset" /var/log/bulkhead/serve.log
success
