#!/bin/sh
# All about a device is told before any guest starts, and nothing is changed by that.
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
#: dom0 xen_pciback.hide=(0000:00:0a.0)(0000:00:0a.1)
#: timeout 300
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
success
