#!/bin/sh
# Devices come to and leave a guest that runs: in any order, with their drivers bound, again and again; nothing leaks.
#: first
#: device e1000e,netdev=n0,addr=5
#: device e1000,netdev=n1,addr=6
#: device edu,addr=7
#: suite bookworm
#: timeout 800
#: xenstored xenstored
#: xenstored oxenstored
. /rig/scenarios/lib.sh
E1000E=0000:00:05.0
E1000=0000:00:06.0
EDU=0000:00:07.0

# Lines of what Xen prints for a debug key that match a pattern.
xen_lines() { # KEY PATTERN
    xl dmesg -c >/dev/null
    xl debug-keys "$1"
    usleep 200000
    xl dmesg -c | grep -cE "$2"
}
# What could leak, as text that must be the same before and after.
inventory() {
    echo "message interrupts of guests: $(xen_lines i 'MSI.* d[1-9][0-9]*:')"
    echo "lines of guests: $(xen_lines i 'IO-APIC.* d[1-9][0-9]*:')"
    echo "event channels to guests: $(xen_lines e 'd=[1-9]')"
    # By name. What libxl remembers of a device's driver in dom0 stays, by libxl's design.
    xenstore-ls -f / | sed 's/ = .*//' | grep -E 'bulkhead|/pci/' | grep -v '^/libxl/pci/' | sort
}
# The guest's bus, such as "00:00.0 8086:10d3 00:01.0 1234:11e8".
bus() { in_guest g1 "lspci -n" | awk '{ print $1, $3 }' | sort | tr '\n' ' ' | sed 's/ $//'; }
# The nodes of the first hop that a device has, by number.
first_hop() { xenstore-ls -f "/local/domain/$(xl domid g1-bulkhead)/backend/pci" | sed 's/.*\/0\///' | grep -E '^[a-z]+-[0-9]+ ' | sort; }
# ping_for COUNT, then after what happens meanwhile: pings_done WHAT COUNT. Ten a second on the first card.
ping_for() {
    in_guest g1 "rm -f /tmp/pings; (ping -c $1 -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1; touch /tmp/pinged) >/dev/null 2>&1 &"
}
pings_done() {
    within 120 "$1: the pings have ended" in_guest g1 "test -e /tmp/pinged && rm /tmp/pinged"
    equal "$1: pings of $2 that were answered" "$2" \
        "$(in_guest g1 cat /tmp/pings | sed -n 's/.*transmitted, \([0-9]*\) .*received.*/\1/p')"
}
# seconds COMMAND...: runs it and leaves the seconds that it took in $took.
seconds() {
    read -r started _ </proc/uptime
    "$@"
    code=$?
    read -r ended_at _ </proc/uptime
    took=$(awk -v a="$started" -v b="$ended_at" 'BEGIN { printf "%.1f", b - a }')
    return $code
}

check "dom0 drives the second card" modprobe e1000
within 10 "its driver is bound" test -e /sys/bus/pci/drivers/e1000/$E1000
# --- the first device of a guest that was created without any
guest_config g1 'passthrough = "enabled"'
check "xl create" xl create -q /root/g1.cfg
check "the guest's shell answers" in_guest g1 true
equal "the guest's bus" "" "$(bus)"
check "attach creates its stub" bulkhead attach g1 --device $E1000E
equal "the guest's bus" "00:00.0 8086:10d3" "$(bus)"
check "e1000e comes up" network_up g1
check "the guest has the other driver" in_guest g1 modprobe e1000
equal "pings lost of 5" 0 "$(pings_lost g1 5)"
inventory >/tmp/before
first_hop >/tmp/first-before
cat /tmp/before

# --- a second card comes, works, and leaves while it is in use
ping_for 100
check "attach" seconds bulkhead attach g1 --device $E1000
say "attach took $took s"
equal "the guest's bus" "00:00.0 8086:10d3 00:01.0 8086:100e" "$(bus)"
check "its driver is bound, by its line" in_guest g1 "
    test -e /sys/bus/pci/drivers/e1000/0000:00:01.0 && ip link set eth1 up && sleep 1 && grep -E 'pirq.*eth1' /proc/interrupts"
check "it moves packets" in_guest g1 "
    ip netns add second 2>/dev/null
    ip addr add 10.0.2.16/24 dev eth1; ip route add 10.0.2.3/32 dev eth1
    for i in \$(seq 30); do ping -c 1 -W 1 -I eth1 10.0.2.3 && exit 0; done; exit 1"
equal "the devices by status" "$E1000E msi-x $E1000 intx" \
    "$(bulkhead status --json | jq -r '[.stubs[0].devices[] | .bdf, .mode] | join(" ")')"
refused "the same device again" "in use.*detach $E1000" bulkhead attach g1 --device $E1000
refused "another stub" "one stub" bulkhead attach g1 --stub other --device $EDU
check "detach while it is in use" seconds bulkhead detach --trusted-guest $E1000
say "detach took $took s"
cat /tmp/check
pings_done "attach and detach" 100
equal "the guest's bus" "00:00.0 8086:10d3" "$(bus)"
equal "interfaces in the guest" "eth0 lo" "$(in_guest g1 "ls /sys/class/net" | tr '\n' ' ' | sed 's/ $//')"
within 10 "dom0's driver has it again" test -e /sys/bus/pci/drivers/e1000/$E1000
first_hop | diff /tmp/first-before - || failure "nodes are left"

# --- several at once, leaving in another order; the freed slot is the next one's
check "attach of two" bulkhead attach g1 --device $E1000 $EDU
equal "the guest's bus" "00:00.0 8086:10d3 00:01.0 8086:100e 00:02.0 1234:11e8" "$(bus)"
check "detach of the first, whose driver is bound" bulkhead detach $E1000E
equal "the guest's bus" "00:01.0 8086:100e 00:02.0 1234:11e8" "$(bus)"
check "detach of the last" bulkhead detach $EDU
check "attach of the last again" bulkhead attach g1 --device $EDU
equal "it stands where the first stood" "00:00.0 1234:11e8 00:01.0 8086:100e" "$(bus)"
check "attach of the first again" bulkhead attach g1 --device $E1000E
equal "the guest's bus" "00:00.0 1234:11e8 00:01.0 8086:100e 00:02.0 8086:10d3" "$(bus)"
check "detach of two" bulkhead detach --trusted-guest $EDU $E1000
equal "the guest's bus" "00:02.0 8086:10d3" "$(bus)"
check "e1000e comes up again" network_up g1
equal "MSI-X vectors" 3 "$(in_guest g1 "grep -c pcifront-msi-x /proc/interrupts")"
equal "pings lost of 5" 0 "$(pings_lost g1 5)"

# --- one device, again and again, under the pings of another
ROUNDS=$([ "$ALL" ] && echo 10 || echo 4)
ping_for 300
for round in $(seq "$ROUNDS"); do
    seconds bulkhead attach g1 --device $EDU >/tmp/check 2>&1 || { cat /tmp/check; failure "round $round: attach"; }
    attached="$attached $took"
    in_guest g1 "test \$(setpci -s 00:00.0 VENDOR_ID) = 1234" || failure "round $round: the guest does not see it"
    seconds bulkhead detach --trusted-guest $EDU >/tmp/check 2>&1 || { cat /tmp/check; failure "round $round: detach"; }
    detached="$detached $took"
done
echo "ok: $ROUNDS rounds; seconds to attach$attached, to detach$detached"
pings_done "$ROUNDS rounds" 300
inventory >/tmp/after
diff /tmp/before /tmp/after || failure "something leaks"
within 10 "the unused nodes are gone" sh -c "! xenstore-ls -f /local/domain/0/backend/bulkhead | grep -E -- '-1 '"

# --- the service is replaced in between, and takes the list up as it is
check "attach" bulkhead attach g1 --device $E1000 $EDU
kill -KILL "$(service_pid)"
check "detach by the worker that stood by" bulkhead detach $EDU
check "the service runs again" sh -c "bulkhead status --json | jq -e .service.running"
check "a rebind of the first, which needs the service" in_guest g1 \
    "cd /sys/bus/pci/drivers/e1000e && echo 0000:00:02.0 >unbind && echo 0000:00:02.0 >bind"
equal "MSI-X vectors" 3 "$(in_guest g1 "ip link set eth0 up; sleep 1; grep -c pcifront-msi-x /proc/interrupts")"

# --- a guest that does not answer keeps what it has, and gets what it is asked to get later
check "pause" xl pause g1
refused "attach to a guest that is paused" "paused" bulkhead attach g1 --device $EDU --wait 5
check "unpause" xl unpause g1
within 10 "the guest's bus is as before" sh -c ". /rig/scenarios/lib.sh; trap - EXIT
    [ \"\$(in_guest g1 'lspci -n' | wc -l)\" = 2 ]"
check "attach" bulkhead attach g1 --device $EDU

# --- the last one ends the connection, and a guest without one gets another
check "detach of all" bulkhead detach g1
equal "the guest's bus" "" "$(bus)"
refused "the stub is gone" "invalid domain|does not exist|not.*found" xl domid g1-bulkhead
check "attach of first devices to a guest that runs" bulkhead attach g1 --device $E1000E
equal "the guest's bus" "00:00.0 8086:10d3" "$(bus)"
check "e1000e comes up" network_up g1
equal "pings lost of 5" 0 "$(pings_lost g1 5)"
check "attach of another" bulkhead attach g1 --device $EDU

check "bulkhead destroy" bulkhead destroy g1
check "nothing is left" sh -c "bulkhead status --json | jq -e '.stubs == []' && [ \$(xl list | wc -l) = 2 ]"
# Those below /libxl are xl's own: it leaves an empty one for each device that it ever held.
equal "nodes that are left" "" \
    "$(xenstore-ls -f / | grep -v '^/libxl/' | grep -E '/pci/|backend/bulkhead/|bulkhead/attachment/|bulkhead/seized/')"

equal "complaints in dom0" "" "$(dmesg | grep -iE 'pciback.*(err|fail|warn)|call trace|bug:|nobody cared|DMAR.*fault')"
success
