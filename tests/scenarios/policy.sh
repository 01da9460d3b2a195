#!/bin/sh
# On what terms a guest has a device: MSI off by every rule, permissive, quirks, names, and the policy file.
#: suite bookworm
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=7
#: device pcie-root-port,id=rp1,chassis=1,slot=1,addr=8
#: device e1000e,netdev=n1,bus=rp1
#: timeout 700
. /rig/scenarios/lib.sh
CARD=0000:00:05.0
PORT=0000:00:08.0
BEHIND=$(basename "$(ls -d /sys/bus/pci/devices/$PORT/0000:*)")
POLICY=/etc/bulkhead/policy.toml
# A register of the card that no table names.
VENDOR=44

# given WHAT OPTION...: the guest gets devices on these terms; they leave with taken BDF....
given() {
    terms=$1
    shift
    check "$terms: bulkhead attach $*" bulkhead attach g1 "$@"
}
taken() { check "$* taken back" bulkhead detach "$@"; }
# policy [LINE]...: what the policy file says from now on.
policy() {
    : >$POLICY
    for line; do
        echo "$line" >>$POLICY
    done
}
# runs_on MODE SLOT: the guest's driver runs the card there on these interrupts, and pings are answered.
runs_on() {
    check "the guest's driver has the card" in_guest g1 "at=$2; card=\$(ls /sys/bus/pci/devices/\$at/net)
        ip addr add 10.0.2.15/24 dev \$card; ip link set \$card up
        until [ \"\$(cat /sys/class/net/\$card/carrier)\" = 1 ]; do [ \$((n += 1)) -lt 50 ] || exit 1; usleep 200000; done
        ping -I \$card -c 3 -i 0.2 -W 2 10.0.2.2 | grep -q ' 3 packets received' || exit 1
        $INTERRUPTS"
    cp /tmp/check /tmp/lines
    in_mode "$terms" "$1" /tmp/lines
    check "$terms: interrupts came" [ "$(fired /tmp/lines)" -gt 0 ]
}
# rule BDF TEXT: status tells people and programs which rule turned MSI off.
rule() {
    equal "$terms: status" "$1: MSI off: $2" "$(bulkhead status | grep "^$1: ")"
    equal "$terms: status, for programs" "$2" \
        "$(bulkhead status --json | jq -r --arg bdf "$1" '.stubs[].devices[] | select(.bdf == $bdf) | .terms.msi.off')"
}

dmesg -c >/dev/null
check "the example of a policy is installed" grep -q permissive $POLICY
guest_config g1
check "bulkhead run, with the example" bulkhead run /root/g1.cfg --device 1234:11e8
check "the guest has the driver" in_guest g1 modprobe e1000e
FIRST=0000:00:01.0

# --- names
refused "another card at the address" "$CARD is 8086:10d3 and not 8086:10d4" \
    bulkhead attach g1 --device "8086:10d4@$CARD"
refused "another card at the place" "$BEHIND is 8086:10d3 and not 1234:11e8" \
    bulkhead attach g1 --device "1234:11e8@$PORT/00.0"
refused "two cards of that kind" "each of $CARD, $BEHIND" bulkhead attach g1 --device 8086:10d3
refused "no such place" "no device 01.0 on the bus below $PORT" bulkhead attach g1 --device $PORT/01.0
refused "an option that there is not" "no option .*fast.*permissive=0.1" bulkhead attach g1 --device $CARD,fast=1
refused "an option twice" "option msi is given twice" bulkhead attach g1 --device $CARD,msi=1,msi=0
refused "a quirk for a base address" "$CARD: quirk 10:4:fff cannot be had" bulkhead attach g1 --device $CARD,quirk=10:4:fff
refused "a quirk for errors" "$CARD: quirk 10c:4:4000 cannot be had" bulkhead attach g1 --device $CARD,quirk=10c:4:4000
refused "a quirk for a reset" "$CARD: quirk e8:2:8000 cannot be had" bulkhead attach g1 --device $CARD,quirk=e8:2:8000

refused "the same by check" "quirk 10:4:fff cannot be had" bulkhead check $CARD,quirk=10:4:fff

# --- the policy file
refused "a policy that is not there" "cannot read the policy /root/none.toml" \
    bulkhead attach g1 --device $CARD --policy /root/none.toml
policy "msi = true" "[[device]]" "match = \"$CARD\"" "permissiv = true"
refused "a broken policy" "$POLICY is broken in line 4, column 1: unknown field .permissiv" bulkhead attach g1 --device $CARD
check "without a policy" rm $POLICY

# --- registers that no table names
in_dom0() { setpci -s $CARD $VENDOR.l; }
old=
# guest_flips WHAT EXPECTED: the guest flips 0x5000 of the register; of that EXPECTED arrives in the device.
guest_flips() {
    old=$(in_dom0)
    in_guest g1 "setpci -s $FIRST $VENDOR.l=$(printf %x $((0x$old ^ 0x5000)))" || failure "$1: the guest's write"
    equal "$1: bits that changed in the device" "$2" "$(printf %x $((0x$(in_dom0) ^ 0x$old)))"
}
dropped() {
    bulkhead status --json | jq "[.stubs[].served.dropped[] | select(.offset == $((0x$VENDOR))) | .count] | add // 0"
}
given "usual" --device "8086:10d3@$CARD"
runs_on "msi-x 3" $FIRST
before=$(dropped)
guest_flips "usual" 0
equal "usual: writes that status counts as dropped" $((before + 1)) "$(dropped)"
equal "usual: terms by status" "" "$(bulkhead status | grep "^$CARD: ")"
taken $CARD
given "quirk" --device "$CARD,quirk=$VENDOR:4:4000"
guest_flips "quirk" 4000
equal "quirk: terms by status" "$CARD: quirks $VENDOR:4:4000" "$(bulkhead status | grep "^$CARD: ")"
taken $CARD
equal "quirk: the register afterwards" "$old" "$(in_dom0)"
policy "[[device]]" "match = \"8086:10d3\"" "permissive = true"
given "permissive" --device $CARD
guest_flips "permissive" 5000
equal "permissive: terms by status" "$CARD: permissive" "$(bulkhead status | grep "^$CARD: ")"
# What dom0 and Xen need stays theirs: error severities, and the reset that would take MSI-X and the addresses away.
equal "the capability at e0" 10 "$(setpci -s $CARD e0.b)"
severity=$(setpci -s $CARD 10c.l) control=$(setpci -s $CARD e8.w) address=$(setpci -s $CARD BASE_ADDRESS_0)
in_guest g1 "setpci -s $FIRST 10c.l=0; setpci -s $FIRST e8.w=f810; setpci -s $FIRST e8.l=8000" || failure "permissive: the guest's writes"
equal "permissive: severities of errors" "$severity" "$(setpci -s $CARD 10c.l)"
equal "permissive: the base address" "$address" "$(setpci -s $CARD BASE_ADDRESS_0)"
equal "permissive: device control, but for the guest's bits" $((0x$control & ~0x7b10)) $((0x$(setpci -s $CARD e8.w) & ~0x7b10))
equal "permissive: writes that dom0 refused" 0 "$(bulkhead status --json | jq '.stubs[0].served.refused | length')"
taken $CARD
equal "permissive: the register afterwards" "$old" "$(in_dom0)"

# --- MSI off, by the command line
policy
given "msi=0" --device $CARD,msi=0
runs_on "intx 1" $FIRST
rule $CARD "command line, msi=0"
taken $CARD
refused "a bridge above none of the devices" "none of the devices is below" \
    bulkhead attach g1 --device $CARD --no-msi-below $PORT
given "--no-msi-below, and a device named by its place" --device "8086:10d3@$PORT/00.0" $CARD --no-msi-below $PORT
runs_on "intx 1" $FIRST
rule "$BEHIND" "command line, --no-msi-below $PORT"
equal "the other's mode" "msi-x 3" "$(mode_of $CARD)"
taken $CARD "$BEHIND"

# --- MSI off, by the file and by Linux
policy "msi = false"
given "all devices" --device $CARD
runs_on "intx 1" $FIRST
rule $CARD "policy.toml, all devices"
taken $CARD
given "the command line wins, and there the device over all" --device $CARD,msi=1 "$BEHIND" --no-msi
runs_on "msi-x 3" $FIRST
rule "$BEHIND" "command line, --no-msi"
taken $CARD "$BEHIND"
policy "[[device]]" "match = \"8086:10d3@$CARD\"" "msi = false" "[[bridge]]" "address = \"$PORT\"" "msi = false"
given "one device, and all below a bridge" --device $CARD $PORT/00.0
runs_on "intx 1" $FIRST
rule $CARD "policy.toml, device 8086:10d3@$CARD"
rule "$BEHIND" "policy.toml, bridge $PORT"
taken $CARD "$BEHIND"
echo 0 >/sys/bus/pci/devices/$PORT/msi_bus
policy
given "Linux" --device "$BEHIND"
rule "$BEHIND" "Linux, msi_bus of bridge $PORT"
equal "its mode" "intx 1" "$(mode_of "$BEHIND")"

check "bulkhead destroy" bulkhead destroy g1
equal "complaints in dom0" "" "$(complaints)"
success
