#!/bin/sh
# The stub fails in every way and place, and begins anew in its domain: the guest's requests get right answers, its pings go on.
#: first
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: suite trixie
#: cpus 2
#: timeout 700
. /rig/scenarios/lib.sh
needs_speed
BDF=0000:00:05.0
KERNEL=/rig/bulkhead-stub-inject

dmesg -c >/dev/null
guest_config g1
bulkhead run /root/g1.cfg --kernel $KERNEL --device $BDF >/tmp/run 2>&1 &
run=$!
stub=g1-bulkhead
within 20 "bulkhead run makes a stub that fails on demand" xl domid $stub
domid=$(xl domid $stub)
log=$(stub_log $stub)
orders=0
restarts=0
# Of these, those of lives that ended before they served the guest.
early=0
# order POINT:KIND [COUNT]: the stub is to fail so the next COUNT times that it comes by.
order() {
    orders=$((orders + 1)) failures=${2:-1}
    xenstore-write "/local/domain/$domid/control/bulkhead-inject" "$1:$failures:$orders"
    usleep 200000
}
# failed WHAT: the stub has failed as ordered last, and serves again.
failed() {
    restarts=$((restarts + failures))
    within 8 "$1: restart $restarts" grep -q " restart $restarts after" "$log"
    within 8 "$1: served again" sh -c "[ \$(grep -c 'is served again' $log) -ge $((restarts - early)) ]"
}

# The guest is still booting. More lives than there is room for lost mappings.
order connect:handle 5
check "bulkhead run" wait $run
early=4
failed "the end of a life that has mapped the guest's page and not noted its handle, five times"
check "e1000e comes up" network_up g1
vectors() { in_guest g1 "grep -c pcifront-msi-x /proc/interrupts"; }
equal "MSI-X vectors" 3 "$(vectors)"

# Meanwhile the guest writes a register, reads it and all the others, and pings, without end.
config=/sys/bus/pci/devices/0000:00:00.0/config
write() { echo "printf '\\$1' | dd of=$config bs=1 seek=12 conv=notrunc 2>/dev/null; head -c 256 $config | sha256sum"; }
one=$(in_guest g1 "$(write 010)")
other=$(in_guest g1 "$(write 020)")
check "the two can be told apart" [ "$one" != "$other" ]
in_guest g1 "ping -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1 &
    (until [ -e /tmp/stop ]; do $(write 010); $(write 020); done) >/tmp/sums 2>/tmp/trouble & echo started"

# pinged: the pings end; sets how many were sent and received. The last one may have been under way.
pinged() {
    in_guest g1 "kill -INT \$(pidof ping); while pidof ping >/dev/null; do usleep 100000; done; tail -n 3 /tmp/pings" >/tmp/pings
    sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) .*/\1 \2/p' /tmp/pings >/tmp/count
    read -r sent received </tmp/count
    [ "$received" != "$((sent - 1))" ] || sent=$received
    check "pings: often enough" [ "$sent" -gt 50 ]
    equal "pings lost" 0 "$((sent - received))"
}

order hotplug:panic
check "bulkhead attach of a second device" bulkhead attach g1 --device 0000:00:06.0
failed "hotplug"
within 10 "the guest has it" in_guest g1 "test -e /sys/bus/pci/devices/0000:00:01.0"
check "bulkhead detach" bulkhead detach 0000:00:06.0
order hotplug:hypercall
refused "attach while Xen refuses a mapping" "cannot map the config space of 0000:00:06.0.*errno 1\\)" \
    bulkhead attach g1 --device 0000:00:06.0
check "once more: attach" bulkhead attach g1 --device 0000:00:06.0
check "and detach" bulkhead detach 0000:00:06.0
inventory >/tmp/before
for order in conf_read:panic conf_read:allocation conf_read:page-fault conf_read:protection-fault conf_read:invalid-opcode \
    conf_write:panic conf_write:page-fault reconcile:page-fault; do
    order $order
    failed $order
done
in_guest g1 "touch /tmp/stop; while pidof head dd >/dev/null; do usleep 100000; done; cat /tmp/sums" >/tmp/sums
awk -v one="$one" -v other="$other" '{ if ($0 != (NR % 2 ? one : other)) wrong++ } END { print NR, wrong + 0 }' >/tmp/rounds </tmp/sums
read -r rounds wrong </tmp/rounds
say "$rounds times a register was written, and all registers were read"
check "often enough" [ "$rounds" -ge 6 ]
pinged
figure restart-pings-lost "$((sent - received))" "pings, of $sent sent while the stub failed $restarts times"
figure restart-wrong-answers "$wrong" "answers, of $rounds times 65 accesses of configuration space"
equal "wrong answers" 0 "$wrong"

# Ten hangs, each of which its timer ends: before a request is carried out, after that, and between requests.
in_guest g1 "ping -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1 & echo started"
accesses g1
for order in conf_read:hang conf_write:hang conf_write-done:hang reconcile:hang conf_read:hang \
    conf_write:hang conf_write-done:hang reconcile:hang conf_read:hang conf_write:hang; do
    order $order
    failed $order
done
check "hangs are told as such" [ "$(grep -c 'after a hang' "$log")" = 10 ]
# What takes long because dom0 does is no hang.
order conf_read:delay
usleep 1500000
accesses_end g1
slowest hang 10
pinged
figure hang-pings-lost "$((sent - received))" "pings, of $sent"

# MSI-X ends by disable_msi: that is what Linux sends for either.
for order in disable_msi:panic enable_msix:page-fault enable_msix-done:panic disable_msi-done:invalid-opcode; do
    order $order
    check "$order: the guest's driver lets go of the device and takes it up" \
        in_guest g1 "cd /sys/bus/pci/drivers/e1000e && echo 0000:00:00.0 >unbind && echo 0000:00:00.0 >bind"
    failed $order
    within 5 "$order: MSI-X vectors: 3" in_guest g1 "ip link set eth0 up; [ \$(grep -c pcifront-msi-x /proc/interrupts) = 3 ]"
done
check "link" network_up g1
inventory >/tmp/after
check "nothing has leaked" diff /tmp/before /tmp/after

equal "complaints in the guest" "" "$(guest_complaints g1)"

# The request that brings the stub down twice: nothing but it.
start=$(in_guest g1 "head -c 64 $config | sha256sum")
order conf_read:panic 2
in_guest g1 "dd if=$config bs=4 skip=24 count=1 2>/dev/null | od -An -tx1"
failed "the poisonous request"
check "it is refused, and its bytes are told" grep -qE "refused from now on; its bytes: [0-9a-f]{72}" "$log"
# Two failures may take the guest's two seconds: what counts is that it is never carried out again.
in_guest g1 "dd if=$config bs=4 skip=24 count=1 2>/dev/null | od -An -tx1"
within 5 "asked for again it is refused at once" grep -qE "conf_read refused \(stub\)" "$log"
equal "all others are served" "$start" "$(in_guest g1 "head -c 64 $config | sha256sum")"
equal "its bytes by status: 36" 72 "$(bulkhead status --json | jq -r '.stubs[0].served.poisonous[0].bytes | length')"
equal "restarts by status" $restarts "$(bulkhead status --json | jq '.stubs[0].served.counters.restarts')"

equal "complaints in dom0" "" "$(complaints)"
# What the stub counts from: the failure; a hang fails when its time is over.
sed -n 's/.*served again \([0-9]*\) us after.*/\1/p' "$log" | sort -n >/tmp/gaps
figure restart-failures $restarts "failures"
figure restart-p50 "$(sed -n "$((($(wc -l </tmp/gaps) + 1) / 2))p" /tmp/gaps)" "us to service again"
figure restart-max "$(tail -n 1 /tmp/gaps)" "us to service again"
check "all within pcifront's two seconds" [ "$(tail -n 1 /tmp/gaps)" -lt 2000000 ]

# Without end: it gives up, and says so. The service brings another one, which knows what this one has refused.
order reconcile:panic 1000
within 10 "a stub that fails without end gives up, and says so" \
    grep -q "failed again and again and served nobody in between; shutting down with reason crash" "$log"
equal "pings lost of 20 meanwhile" 0 "$(pings_lost g1 20 0.1)"
within 20 "the next stub serves all others" sh -c "[ \"\$(guest-run g1 60 'head -c 64 $config | sha256sum')\" = '$start' ]"
refused=$(grep -c "conf_read refused (stub)" "$log")
in_guest g1 "dd if=$config bs=4 skip=24 count=1 2>/dev/null | od -An -tx1"
within 5 "and refuses the poisonous request at once" sh -c "[ \$(grep -c 'conf_read refused (stub)' $log) -gt $refused ]"

# A hang that even the timer's upcall cannot end: Xen's watchdog ends the domain, and the service brings another one.
before=$(grep -c 'is back after' /var/log/bulkhead/serve.log)
in_guest g1 "ping -c 80 -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1 & echo started"
read -r began _ </proc/uptime
order reconcile:deaf
within 30 "after a hang with upcalls masked there is another stub" \
    sh -c "[ \$(grep -c 'is back after' /var/log/bulkhead/serve.log) -gt $before ]"
read -r now _ </proc/uptime
figure watchdog-return "$(awk -v a="$began" -v b="$now" 'BEGIN { print int((b - a) * 1000) }')" \
    "ms from the hang to another stub, Xen's ten seconds included"
within 20 "which serves the guest" sh -c "[ \"\$(guest-run g1 60 'head -c 64 $config | sha256sum')\" = '$start' ]"
within 20 "the pings have ended" sh -c "guest-run g1 60 'grep -q received /tmp/pings'"
answered=$(in_guest g1 cat /tmp/pings | sed -n 's/.* transmitted, \([0-9]*\) .*received.*/\1/p')
figure watchdog-pings-lost $((80 - answered)) of 80
equal "pings of 80 answered" 80 "$answered"

# What a stub cannot catch itself ends its domain. Xen cannot deliver a fault to a stack without room; and where no upcall
# comes, its watchdog does.
xl dmesg -c >/dev/null
for kind in stack deaf; do
    check "xl create of a stub" xl create -q /etc/bulkhead/stubdom.cfg "name=\"$kind\"" "kernel=\"$KERNEL\""
    domid=$(xl domid $kind)
    order reconcile:$kind
    # Shut down or crashed; the service's stubs are preserved, so that it finds them.
    within 16 "reconcile:$kind ends the domain" sh -c "xl list $kind | awk 'NR == 2 { exit \$5 !~ /[sc]/ }'"
    check "xl destroy" xl destroy $kind
done
xl dmesg -c >/tmp/xen
check "the first by Xen" grep -i 'domain.*crash' /tmp/xen
check "the second by its watchdog" grep -i 'watchdog.*domain' /tmp/xen
success
