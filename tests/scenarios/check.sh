#!/bin/sh
# All about a device is told before any guest starts; devices are held for guests and given back in words.
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: device nvme,drive=d0,serial=check,addr=6
#: device edu,addr=8
#: device rtl8139,netdev=n1,addr=9
#: device e1000,netdev=n2,addr=a.0,multifunction=on
#: device edu,addr=a.1
#: device pcie-root-port,id=rootport,addr=c,chassis=1
#: device e1000e,netdev=n3,bus=rootport
#: device pcie-pci-bridge,id=conventional,addr=d
#: device e1000,netdev=n4,bus=conventional,addr=1
#: device edu,bus=conventional,addr=2
#: device pcie-root-port,id=open,addr=e,chassis=2,disable-acs=on
#: device e1000e,netdev=n5,bus=open
#: device VGA,addr=f
#: dom0 xen_pciback.hide=(0000:00:0a.0)(0000:00:0a.1)
#: timeout 700
. /rig/scenarios/lib.sh
E1000E=0000:00:05.0 NVME=0000:00:06.0 EDU=0000:00:08.0 RTL=0000:00:09.0
HIDDEN=0000:00:0a.0 HIDDEN_TOO=0000:00:0a.1 BEHIND=0000:01:00.0 FIRST=0000:02:01.0 SECOND=0000:02:02.0

# told NAME...: bulkhead check --json goes to /tmp/json, its exit code to $code.
told() {
    bulkhead check --json "$@" >/tmp/json 2>/tmp/errors
    code=$?
    jq -e . /tmp/json >/dev/null || { cat /tmp/json /tmp/errors; failure "no JSON from: bulkhead check --json $*"; }
}
# about NAME FILTER: what is told of one device.
about() { jq -rc --arg name "$1" ".devices[] | select(.name == \$name) | $2" /tmp/json; }
driver() { link=$(readlink "/sys/bus/pci/devices/$1/driver") && echo "${link##*/}" || echo none; }

# --- before anything
modprobe -a e1000e nvme 8139cp
within 10 "dom0 has its disk" test -b /dev/nvme0n1
devices() { for device in /sys/bus/pci/devices/*; do echo "${device##*/} $(driver "${device##*/}") $(cat "$device/enable")"; done; }
devices >/tmp/before
bulkhead check $E1000E $EDU
told $E1000E $NVME $EDU $RTL $HIDDEN $HIDDEN_TOO $BEHIND $FIRST 0000:00:1e.7 00:5 0000:00:1f.0
devices >/tmp/after
check "nothing was changed by checking" cmp /tmp/before /tmp/after
equal "exit code where not all are fit" 1 $code
equal "fit as a whole" false "$(jq .fit /tmp/json)"
equal "fit one by one" "true true true true true true true false false false false" "$(jq -r '[.devices[].fit] | join(" ")' /tmp/json)"
equal "held by" "dom0's driver e1000e" "$(about $E1000E .held_by)"
equal "hidden by the kernel's command line" "xen-pciback, free for a guest" "$(about $HIDDEN_TOO .held_by)"
equal "reset of a card" PM "$(about $E1000E .reset.used)"
equal "reset of a disk" FLR "$(about $NVME .reset.used)"
equal "reset of edu" null "$(about $EDU .reset.used)"
check "and what that means" grep "$EDU has no reset method: what a guest leaves in its registers stays there" /tmp/json
equal "resets of a card behind a port" '["PM","bus"]' "$(about $BEHIND .reset.methods)"
equal "who blocks the reset of a bus" "[\"$SECOND\"]" "$(about $FIRST .reset.blocked_by)"
equal "IOMMU group of one alone" "[]" "$(about $E1000E .group)"
check "and behind a bridge to conventional PCI" sh -c "jq -e '.devices[] | select(.name == \"$FIRST\").group | index(\"$SECOND\")' /tmp/json"
equal "vectors" "1 5" "$(about $E1000E '"\(.msi) \(.msix)"')"
equal "what a guest can have" 32 "$(jq .spare_pirqs /tmp/json)"
equal "line of one that dom0 has not turned on" '{"gsi":null,"shared_with":[],"offered":false}' "$(about $EDU .line)"
# The other card on it was named too, so it would go to the same guest; the bridge on it has no driver.
equal "line of one that shares it with its guest alone" "[] true" "$(about $E1000E '"\(.line.shared_with) \(.line.offered)"')"
check "one whose DMA is not its own alone" sh -c "jq -r '.devices[7].refusals[0]' /tmp/json | grep 'cannot tell the DMA of $FIRST from that of $SECOND'"
check "one that is not there" sh -c "jq -r '.devices[8].refusals[0]' /tmp/json | grep 'no PCI device 0000:00:1e.7'"
check "a typo" sh -c "jq -r '.devices[9].refusals[0]' /tmp/json | grep '00:5'"
check "the bridge of the mainboard" sh -c "jq -r '.devices[10].refusals[0]' /tmp/json | grep 'is a part of the mainboard, the bridge to'"
told $E1000E
equal "line of one that shares it with a card of dom0's" "[\"$RTL\"] false" "$(about $E1000E '"\(.line.shared_with) \(.line.offered)"')"
told $FIRST $SECOND
equal "both behind the bridge together are fit" "0 true" "$code $(jq .fit /tmp/json)"

# --- what the host loses, and whom a device may reach
mkdir -p /usr/share/misc
printf '8086  Intel\n\t10d3  Card\n' >/usr/share/misc/pci.ids
OPEN=0000:03:00.0 DISPLAY_CARD=0000:00:0f.0 SMBUS=0000:00:1f.3
bulkhead check $OPEN $BEHIND $DISPLAY_CARD $SMBUS
told $OPEN $BEHIND $DISPLAY_CARD $SMBUS
equal "fit one by one" "true true true false" "$(jq -r '[.devices[].fit] | join(" ")' /tmp/json)"
equal "what it is called" "Intel Card" "$(about $OPEN .called)"
equal "a port without ACS" '["0000:00:0e.0"]' "$(about $OPEN .without_acs)"
check "and what that means" grep "$OPEN may reach other devices by DMA, and they it, past the IOMMU" /tmp/json
equal "a port with ACS" "[]" "$(about $BEHIND .without_acs)"
check "the display of the host" grep "$DISPLAY_CARD is the display that this host booted with" /tmp/json
check "a part of the mainboard" grep "$SMBUS is a part of the mainboard, the bus of its memory modules" /tmp/json
refused "a device behind VMD" "PCI domain above ffff" bulkhead check 10000:e1:00.0
refused "another segment" "no PCI device 0001:00:05.0" bulkhead check 0001:00:05.0
guest_config g4
sed -i /e820_host/d /root/g4.cfg
check "a guest without e820_host" xl create -q -p /root/g4.cfg
refused "is named by check" "guest g4 has no e820_host=1" bulkhead check --guest g4 $EDU
guest_config g5
check "a guest without passthrough" xl create -q -p /root/g5.cfg
refused "is named by check" "guest g5 was created without passthrough" bulkhead check --guest g5 $EDU
xl destroy g4
xl destroy g5

# --- in use by dom0
ip link set "$(ls /sys/bus/pci/devices/$E1000E/net)" up
mkswap /dev/nvme0n1 >/dev/null 2>&1 && swapon /dev/nvme0n1 || error "no disk to swap to"
for command in check seize; do
    refused "$command: an interface that is up" "interface eth[0-9]+ is up: .ip link set" bulkhead $command $E1000E
    refused "$command: a disk in use" "/dev/nvme0n1 is swapped to: .swapoff /dev/nvme0n1. frees it" bulkhead $command $NVME
done
guest_config g1
refused "run: a disk in use" "/dev/nvme0n1 is swapped to" bulkhead run /root/g1.cfg --device $NVME
equal "the disk's driver is untouched" nvme "$(driver $NVME)"
swapoff /dev/nvme0n1
ip link set "$(ls /sys/bus/pci/devices/$E1000E/net)" down

# --- seize and release
check "seize two" bulkhead seize $E1000E $EDU
cp /tmp/check /tmp/said
cat /tmp/said
check "and say how they were reset" sh -c "grep '$E1000E from dom0.s driver e1000e; reset by PM' /tmp/said && grep '$EDU.*no reset method' /tmp/said"
equal "xen-pciback has them" "pciback pciback" "$(driver $E1000E) $(driver $EDU)"
check "status says so" sh -c "bulkhead status --json | jq -e '.held | index(\"$E1000E\") and index(\"$EDU\") and index(\"$HIDDEN\")'"
check "Xen keeps them in quarantine" sh -c "xl dmesg -c >/dev/null; xl debug-keys Q; sleep 1; xl dmesg | grep -E ' $E1000E - (DomIO|d\[IO\])'"
check "seizing again changes nothing" bulkhead seize $E1000E
told $EDU
equal "the line of a device that is held is known" number "$(about $EDU '.line.gsi | type')"
check "release one" bulkhead release $EDU
check "release one to its driver" bulkhead release $E1000E
equal "the drivers of before" "none e1000e" "$(driver $EDU) $(driver $E1000E)"
refused "what is not held" "not held for guests: dom0 has it, with its driver e1000e" bulkhead release $E1000E
check "release what the kernel's command line hid" bulkhead release $HIDDEN
equal "a driver may have it now" none "$(driver $HIDDEN)"
printf '[[device]]\nmatch = "%s"\nseize = true\n[[device]]\nmatch = "1234:5678"\nseize = true\n' $RTL >/root/policy.toml
refused "one of the policy's devices is missing" "1234:5678" bulkhead seize --marked --policy /root/policy.toml
equal "the other one is seized all the same" pciback "$(driver $RTL)"

# --- a guest: reset before and after, and then held as before
configuration() {
    setpci -s "$1" COMMAND CACHE_LINE_SIZE LATENCY_TIMER BASE_ADDRESS_0 BASE_ADDRESS_1 ROM_ADDRESS INTERRUPT_LINE | tr '\n' ' '
}
before=$(configuration $RTL)
check "bulkhead run" bulkhead run /root/g1.cfg --device $RTL --device $NVME
cp /tmp/check /tmp/said
cat /tmp/said
check "the reset before the guest is told" grep "$NVME was reset by FLR" /tmp/said
check "and that there is none" grep "$RTL has no reset method" /tmp/said
equal "power state at hand-over" D0 "$(lspci -vv -s $NVME 2>/dev/null | sed -n 's/.*Status: \(D[0-3]\).*/\1/p')"
check "the guest's shell answers" in_guest g1 true
told --guest g1 $EDU $RTL
equal "one that a guest has" "guest g1 (through stub g1-bulkhead)" "$(about $RTL .held_by)"
equal "the guest's pirqs" "0 of 32" "$(jq -r '"\(.guest.pirqs_used) of \(.spare_pirqs)"' /tmp/json)"
refused "seize what a guest has" "in use by guest g1" bulkhead seize $RTL
refused "release what a guest has" "in use by guest g1" bulkhead release $RTL
check "the guest uses the disk" in_guest g1 "modprobe nvme; for i in \$(seq 50); do [ -b /dev/nvme0n1 ] && exit 0; usleep 200000; done; exit 1"
check "and changes the card's configuration" in_guest g1 "setpci -s 00:00.0 CACHE_LINE_SIZE=20 COMMAND=0007"
equal "which reaches the card" 20 "$(setpci -s $RTL CACHE_LINE_SIZE)"
check "bulkhead destroy" bulkhead destroy g1
within 10 "the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
check "the reset after the guest is told" grep "$NVME was stopped and reset by FLR, and answers" /var/log/bulkhead/serve.log
check "and that there was none" grep "$RTL was stopped, and answers; no reset method" /var/log/bulkhead/serve.log
equal "the card's configuration is that of before" "$before" "$(configuration $RTL)"
equal "seized before, held after; dom0's before, dom0's after" "pciback nvme" "$(driver $RTL) $(driver $NVME)"
within 10 "dom0 has its disk again" test -b /dev/nvme0n1

# --- quarantine
xenstore-write /local/domain/0/bulkhead/quarantine/0000-00-09-0 "the test says so"
refused "one in quarantine is for no guest" "in quarantine, because the test says so" bulkhead run /root/g1.cfg --device $RTL
check "status names it with the next step" sh -c "bulkhead status | grep 'quarantine: $RTL, because the test says so: .bulkhead release $RTL'"
check "its release tries the reset" bulkhead release $RTL
cp /tmp/check /tmp/said
check "and lifts the quarantine" grep "$RTL answers again, and is in quarantine no more" /tmp/said
equal "its driver is back" 8139cp "$(driver $RTL)"
success
