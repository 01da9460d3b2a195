#!/bin/sh
# The service is killed at every point where it changes something: the guest notices nothing, and nothing is left behind.
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=7
#: suite trixie
#: cpus 2
#: timeout 900
. /rig/scenarios/lib.sh
needs_speed
BDF=0000:00:05.0
EDU=0000:00:07.0
LOG=/var/log/bulkhead/serve.log
ORDERS=/run/bulkhead/inject
AT='at=0000:00:00.0'

# What systemd does elsewhere (config/bulkhead.service): whenever the launcher ends it is started again, 100 ms later. Its
# log is read as it comes, so that each taking up of a stub is timed without a process that looks for it.
mkdir -p /run/bulkhead /var/log/bulkhead
: >/tmp/served
mkfifo /tmp/log
exec 4<>/tmp/log
(while read -r line; do
    case $line in *"serving stub"*) read -r now _ </proc/uptime && echo "$now" >>/tmp/served ;; esac
    echo "$line" >>$LOG
done <&4) &
(while :; do [ -e /tmp/down ] || /rig/bin/bulkhead-inject serve --supervised >&4 2>&4; usleep 100000; done) &
within 10 "the service runs" sh -c "bulkhead status --json | jq -e .service.running"

# served COUNT: stubs were taken up so often.
served() { [ "$(wc -l </tmp/served)" -ge "$1" ]; }
# stands_by WHEN: waits until a worker is there that takes the other one's place.
stands_by() { within 20 "$1: a worker stands by" sh -c ". /rig/scenarios/lib.sh; trap - EXIT; complete"; }
# killed WHICH: kills that process of the service, and adds to /tmp/times after how many ms the stub was served again.
killed() {
    count=$(wc -l </tmp/served)
    process=$($1)
    read -r killed _ </proc/uptime
    kill -KILL "$process"
    within 10 "$1 $process was killed: the stub is served" served $((count + 1))
    tail -n 1 /tmp/served | awk -v killed="$killed" '{ print int(($1 - killed) * 1000 + 0.5) }' >>/tmp/times
}
# spent WHAT: every failure that was ordered has happened.
# The last one may be on its way when what it comes after can be seen.
spent() { within 20 "$1: the service came by" test ! -e $ORDERS; }

guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
check "e1000e comes up" network_up g1
equal "pings lost before" 0 "$(pings_lost g1 5)"
dmesg -c >/dev/null
inventory | grep -v memory >/tmp/before
cat /tmp/before

# --- what the service holds, and what it cannot do
bulkhead status --json | jq .service >/tmp/service
equal "the service's privileges" "sys_admin true true" \
    "$(jq -r '.holds | "\(.capabilities | join(",")) \(.no_new_privileges) \(.filtered)"' /tmp/service)"
equal "pages, event channels, pirqs, open configuration spaces" "1 1 3 1" \
    "$(jq -r '.holds | "\(.pages) \(.event_channels) \(.pirqs) \(.devices | length)"' /tmp/service)"
echo "taken:exec" >$ORDERS
check "a write in the guest" in_guest g1 "setpci -s 00:00.0 CACHE_LINE_SIZE=10"
spent "taken:exec"
check "the service cannot run a program, and lives" grep -q 'running a program: Err.*code: 1,' $LOG
check "it cannot make a socket" grep -q 'making a socket: Err.*code: 1,' $LOG
check "it cannot open a file of root's" grep -q "opening a file of root's: Err.*code: 13," $LOG

watch_machine
# A stub waits for 1.5 s, which a worker has not on a slow machine: there is nothing then that could be judged.
unsteady() {
    cat /tmp/still
    grep -ohE 'did not answer within [0-9]+ ms|an answer came too late|refusals that blame dom0' /var/log/xen/guest-g?-bulkhead.log
}

# --- a worker that was stopped, which never goes on by itself
stands_by "a stop"
stopped=$(service_pid)
count=$(wc -l </tmp/served)
check "the worker is stopped" kill -STOP "$stopped"
within 20 "it is killed, and another one serves the stub" served $((count + 1))
check "it is gone" [ ! -e "/proc/$stopped" ]
equal "after that: pings lost of 10" 0 "$(pings_lost g1 10 0.1)"

# --- the launcher, without which there is no worker
for round in 1 2 3; do
    stands_by "launcher, kill $round"
    workers="$(service_pid) $(spare_pid)"
    # Nor do those keep a new service waiting that can do nothing themselves.
    [ $round != 3 ] || kill -STOP $workers
    killed launcher_pid
    for worker in $workers; do [ ! -e "/proc/$worker" ] || failure "worker $worker outlives its launcher"; done
done
figure launcher-killed-max "$(sort -n /tmp/times | sed -n '$p')" ms

# --- killed at each point during a rebind of the driver, which writes and turns MSI-X off and on
killed_at() {
    # What a try has left that did not count.
    in_guest g1 "$AT; [ -e /sys/bus/pci/devices/\$at/driver ] || echo \$at >/sys/bus/pci/drivers/e1000e/bind"
    stands_by "$1"
    echo "$1:kill" >$ORDERS
    in_guest g1 "dmesg -c >/dev/null; $AT; $REBIND; $NETWORK_UP; $INTERRUPTS" >/tmp/lines 2>&1 || { cat /tmp/lines; return 1; }
    spent "$1"
    guest_complaints g1
    [ "$(grep -c pcifront-msi-x /tmp/lines)" = 3 ] && [ -z "$(guest_complaints g1)" ]
}
for point in taken answered note noted map mapped unmap unmapped write written; do
    steadily "killed at $point: the guest rebinds its driver, with MSI-X and without a complaint" killed_at $point
done
stands_by "three times"
printf 'take-up:kill\nnoted:kill\nmapped:kill\n' >$ORDERS
kill -KILL "$(service_pid)"
# Three restarts may take longer than the stub and its guest wait for one answer: then MSI-X is refused, MSI or INTx works, and
# the order that comes after a mapping waits for the next rebind.
for rebind in 1 2 3; do
    check "killed three times over: rebind $rebind" in_guest g1 "$AT; $REBIND; $NETWORK_UP"
    sleep 1
    [ -e $ORDERS ] || break
done
spent "three times"
equal "killed three times over: pings lost of 10" 0 "$(pings_lost g1 10 0.1)"
echo "map:fail:1" >$ORDERS
check "a mapping that Xen refuses: rebind" in_guest g1 "$AT; $REBIND; $NETWORK_UP"
spent "map:fail"
check "after that: rebind" in_guest g1 "$AT; $REBIND; $NETWORK_UP; $INTERRUPTS"
cp /tmp/check /tmp/lines
in_mode "after that" "msi-x 3" /tmp/lines
equal "pings lost of 10" 0 "$(pings_lost g1 10 0.1)"

stands_by "the spare worker"
check "the worker that stands by is killed" kill -KILL "$(spare_pid)"
check "that is nothing to the other: rebind" in_guest g1 "$AT; $REBIND; $NETWORK_UP"

# --- commands that are killed halfway, and the service while they wait for it
for point in recorded assign listed; do
    echo "$point:kill" >$ORDERS
    /rig/bin/bulkhead-inject attach g1 --device $EDU >/tmp/check 2>&1 && failure "attach was not killed at $point"
    spent "attach at $point"
    check "attach killed at $point: detach takes back what there is" bulkhead detach $EDU
done
check "attach" bulkhead attach g1 --device $EDU
for point in deassign released; do
    echo "$point:kill" >$ORDERS
    check "detach while the service is killed at $point" bulkhead detach $EDU
    spent "detach at $point"
    check "attach again" bulkhead attach g1 --device $EDU
done
echo "listed:kill" >$ORDERS
/rig/bin/bulkhead-inject detach $EDU >/tmp/check 2>&1 && failure "detach was not killed"
# Back to dom0, as it was before.
check "detach killed at listed: detach again" bulkhead detach --trusted-guest $EDU
equal "devices of the guest" 1 "$(in_guest g1 "lspci -n" | wc -l)"

within 10 "nothing leaks" sh -c '. /rig/scenarios/lib.sh; trap - EXIT; inventory | grep -v memory | diff /tmp/before -'
# Meant are the mapping that Xen refused and, it may be, one of each rebind over three restarts.
equal "complaints in the guest of anything else" "" "$(guest_complaints g1 | grep -v 'enable msix get err')"
refusals=$(grep -c 'enable msix get err' /rig/out/g1.dmesg)
check "refusals of MSI-X in the guest: 1 to $((rebind + 1))" [ "$refusals" -ge 1 -a "$refusals" -le $((rebind + 1)) ]

# --- the guest dies, and the service over its release, three times
printf 'write:kill\ndestroy:kill\nreleased:kill\n' >$ORDERS
check "xl destroy" xl destroy g1
within 20 "the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
spent "the guest's death"
quiet $BDF
equal "domains" 1 "$(xl list | tail -n +2 | wc -l)"

# --- a guest that dies while there is no service
guest_config g2
echo "created:kill" >$ORDERS
/rig/bin/bulkhead-inject run /root/g2.cfg --device $BDF >/tmp/check 2>&1 && failure "run was not killed"
check "run killed after the guest's creation: destroy" bulkhead destroy g2
check "bulkhead run" bulkhead run /root/g2.cfg --device $BDF
touch /tmp/down
kill -KILL "$(launcher_pid)"
within 5 "no process of the service is left" sh -c ". /rig/scenarios/lib.sh; trap - EXIT; [ -z \"\$(service_pid)\$(spare_pid)\" ]"
check "xl destroy" xl destroy g2
rm /tmp/down
within 20 "a later service clears away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
equal "domains" 1 "$(xl list | tail -n +2 | wc -l)"
equal "nodes that are left" "" \
    "$(xenstore-ls -f / | grep -v '^/libxl/' | grep -E '/pci/|backend/bulkhead/|bulkhead/attachment/')"
equal "complaints in dom0" "" "$(complaints)"
check "the command that ships has no failures on demand" sh -c "! grep -q /run/bulkhead/inject /usr/bin/bulkhead"

# --- ten kills of the worker, while the guest pings, and writes and reads a register
guest_config g3
check "bulkhead run" bulkhead run /root/g3.cfg --device $BDF
check "e1000e comes up" network_up g3
# With --all the guest leaves dom0 hardly any of the processor.
pause=200000
[ -z "$ALL" ] || pause=50000
ten_kills() {
    in_guest g3 "rm -f /tmp/stop /tmp/wrong /tmp/pinged; (while [ ! -e /tmp/stop ]; do
            v=\$(printf %02x \$((n % 200))); n=\$((n + 1))
            setpci -s 00:00.0 CACHE_LINE_SIZE=\$v && [ \"\$(setpci -s 00:00.0 CACHE_LINE_SIZE)\" = \$v ] || echo \$n \$v >>/tmp/wrong
            echo \$n >/tmp/rounds
            usleep $pause
        done >/dev/null 2>&1 &)
        (ping -c 300 -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1; touch /tmp/pinged) >/dev/null 2>&1 &"
    rm -f /tmp/times /tmp/beside
    for round in 1 2 3 4 5 6 7 8 9 10; do
        stands_by "kill $round"
        killed service_pid
        eight_programs >>/tmp/beside
    done
    sort -n /tmp/times -o /tmp/times
    say "served again after, in ms: $(tr '\n' ' ' </tmp/times)"
    sort -n /tmp/beside -o /tmp/beside
    # A worker that takes over does less than they.
    limit=$(sed -n '$p' /tmp/beside)
    [ "$limit" -gt 1000 ] || limit=1000
    say "eight programs that ask xenstored: $(tr '\n' ' ' </tmp/beside)ms; limit: $limit ms"
    within 60 "the pings have ended" in_guest g3 "test -e /tmp/pinged"
    answered=$(in_guest g3 cat /tmp/pings | sed -n 's/.* transmitted, \([0-9]*\) .*received.*/\1/p')
    wrong=$(in_guest g3 "touch /tmp/stop; cat /tmp/wrong 2>/dev/null")
    say "pings answered: $answered of 300; writes and reads: $(in_guest g3 cat /tmp/rounds), wrong: ${wrong:-none}"
    [ "$(sed -n '$p' /tmp/times)" -lt "$limit" ] && [ "$answered" = 300 ] && [ -z "$wrong" ]
}
steadily "ten kills: another worker serves within 1 s, or in the time of eight programs beside it, all pings are answered, nothing reads wrong" ten_kills
figure worker-killed-p50 "$(sed -n 5p /tmp/times)" ms
figure worker-killed-max "$(sed -n '$p' /tmp/times)" ms
figure worker-killed-pings-lost 0 of 300
check "bulkhead destroy" bulkhead destroy g3
equal "domains" 1 "$(xl list | tail -n +2 | wc -l)"
equal "complaints in dom0" "" "$(complaints)"
success
