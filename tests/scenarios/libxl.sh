#!/bin/sh
# xl is refused a device that a guest has through a stub, each time, before it touches the device, and so is saving the guest; a device in quarantine is not offered.
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=7
#: suite bookworm
#: timeout 700
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
EDU=0000:00:07.0
NOTE=/libxl/pci/0000-00-05-0

# told: what libxl is told of the card: the number of its guest, by whom.
told() { echo "$(xenstore-read $NOTE/domid 2>/dev/null) $(xenstore-read $NOTE/bulkhead 2>/dev/null)"; }
# ranges DOMAIN: how many of a domain's address ranges, as Xen lists them, hold the first frame of the card's registers.
ranges() {
    xl dmesg -c >/dev/null
    xl debug-keys q
    usleep 500000
    xl dmesg -c >/tmp/domains
    found=0
    for range in $(awk -v domain="$(xl domid "$1"):" '/General information for domain/ { inside = $NF == domain }
        inside && /I\/O Memory/ { gsub(/.*[{]|[},]/, " "); print }' /tmp/domains); do
        [ $((0x${range%-*})) -gt $FRAME ] || [ $((0x${range#*-})) -lt $FRAME ] || found=$((found + 1))
    done
    echo $found
}
# notes: all of libxl's notes of the card and its neighbour.
notes() { xenstore-ls -f /libxl/pci 2>/dev/null | sort; }

check "dom0's driver has the card" modprobe e1000e
within 10 "it is bound" test -e /sys/bus/pci/drivers/e1000e/$BDF
notes >/tmp/before
FRAME=$(($(awk 'NR == 1 { print $1 }' "/sys/bus/pci/devices/$BDF/resource") >> 12))

guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
check "e1000e comes up" network_up g1
guest_config g2 'passthrough = "enabled"'
check "another guest" xl create -q /root/g2.cfg
check "its shell answers" in_guest g2 true
expected="$(xl domid g1) guest $(xl domid g1) stub $(xl domid g1-bulkhead)"
equal "what libxl is told" "$expected" "$(told)"
check "g1 has the card's registers in Xen's eyes" [ "$(ranges g1)" = 1 ]
equal "g2 has them" 0 "$(ranges g2)"

# --- another guest, again and again: libxl drops the note whenever it refuses
in_guest g1 "rm -f /tmp/pinged; (ping -c 150 -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1; touch /tmp/pinged) >/dev/null 2>&1 &"
for round in 1 2 3 4 5; do
    refused "round $round: xl pci-attach g2" "not assignable" xl pci-attach g2 $BDF
    within 2 "round $round: libxl is told again" sh -c "[ \"\$(xenstore-read $NOTE/domid)\" = $(xl domid g1) ]"
done
equal "what libxl is told" "$expected" "$(told)"
guest_config g3 "pci = [ '$BDF' ]"
refused "a guest with pci = [ … ]" "not assignable" xl create -q /root/g3.cfg
refused "it is not there" "invalid|not.*exist|not.*found" xl domid g3
within 2 "libxl is told again" sh -c "[ \"\$(xenstore-read $NOTE/domid)\" = $(xl domid g1) ]"
equal "xl pci-assignable-list" "" "$(xl pci-assignable-list)"
refused "xl pci-assignable-remove" "failed to de-quarantine" xl pci-assignable-remove $BDF
refused "xl pci-assignable-add" "failed to quarantine" xl pci-assignable-add $BDF
# Neither guest nor stub notices that xl wants to save, copy or move it.
for domain in g1 g1-bulkhead; do
    refused "xl save $domain" "Suspend event channel initialization failed" timeout 20 xl save $domain /tmp/saved
    refused "xl save -c $domain" "Suspend event channel initialization failed" timeout 20 xl save -c $domain /tmp/saved
done
refused "xl migrate" "Suspend event channel initialization failed" timeout 60 xl migrate -s "" g1 "xl migrate-receive"
# libxl's receiver dies of a segmentation fault when the sender says nothing, and leaves what it has made.
if xl domid g1--incoming >/dev/null 2>&1; then
    check "what is left of the migration" xl destroy g1--incoming
fi
within 10 "g1 alone has devices" sh -c "bulkhead status --json | jq -e '.starts == [] and (.stubs | length) == 1'"
check "xl save of a guest without devices" xl save -c g2 /dev/null
# It fails without a word.
xl pci-detach g1 $BDF && failure "xl pci-detach g1: not refused"
equal "what libxl is told" "$expected" "$(told)"
within 60 "the pings have ended" in_guest g1 "test -e /tmp/pinged"
equal "pings of 150 that were answered" 150 \
    "$(in_guest g1 cat /tmp/pings | sed -n 's/.* transmitted, \([0-9]*\) .*received.*/\1/p')"
check "g1 has the card's registers in Xen's eyes" [ "$(ranges g1)" = 1 ]
equal "g2 has them" 0 "$(ranges g2)"
equal "MSI-X vectors" 3 "$(in_guest g1 "grep -c pcifront-msi-x /proc/interrupts")"

# --- notes that are wrong when the service starts
kill -KILL "$(launcher_pid)"
xenstore-rm $NOTE/domid
xenstore-write /libxl/pci/0000-00-09-0/domid 9
xenstore-write /libxl/pci/0000-00-09-0/bulkhead "guest 9 stub 10"
check "a device more, for which the service starts" bulkhead attach g1 --device $EDU
within 5 "libxl is told again" sh -c "[ \"\$(xenstore-read $NOTE/domid)\" = $(xl domid g1) ]"
within 5 "what no record explains is gone" sh -c "! xenstore-read /libxl/pci/0000-00-09-0/domid"
equal "xl pci-assignable-list" "" "$(xl pci-assignable-list)"
# Told so while g1, which may have it mapped, lives.
check "detach of one" bulkhead detach $EDU
equal "libxl is still told of it" "$(xl domid g1)" "$(xenstore-read /libxl/pci/0000-00-07-0/domid)"
check "what g1 may have mapped does not matter here" bulkhead release --trusted-guest $EDU
equal "libxl is told nothing of it" "" "$(xenstore-read /libxl/pci/0000-00-07-0/domid 2>/dev/null)"
equal "what libxl is told of the other" "$expected" "$(told)"

# --- afterwards all is as before
check "bulkhead destroy" bulkhead destroy g1
within 10 "dom0's driver has the card again" test -e /sys/bus/pci/drivers/e1000e/$BDF
notes | grep -vE "^/libxl/pci/[-0-9a-f]+ = |^/libxl/pci = " >/tmp/after
grep -vE "^/libxl/pci/[-0-9a-f]+ = |^/libxl/pci = " /tmp/before | diff - /tmp/after || failure "notes are left"
equal "complaints in dom0" "" "$(complaints)"
check "xl has no quarrel with the card" xl pci-assignable-add $BDF
check "a guest gets it by xl" xl pci-attach g2 $BDF
refused "now Bulkhead is refused" "in use by domain" bulkhead run /root/g1.cfg --device $BDF
check "xl destroy" xl destroy g2

# --- one in quarantine
check "seize" bulkhead seize $EDU
equal "xl pci-assignable-list offers it" "$EDU" "$(xl pci-assignable-list | grep $EDU | tr -d " ")"
xenstore-write /local/domain/0/bulkhead/quarantine/0000-00-07-0 "this scenario says so"
check "the service looks" sh -c "bulkhead status | grep 'quarantine: $EDU'"
xenstore-write /libxl/pci/0000-00-0f-0/x 1
within 5 "xl pci-assignable-list does not offer it" sh -c "! xl pci-assignable-list | grep $EDU"
xenstore-rm /libxl/pci/0000-00-0f-0
check "release" bulkhead release $EDU
equal "libxl is told nothing of it" "" "$(xenstore-read /libxl/pci/0000-00-07-0/domid 2>/dev/null)"
success
