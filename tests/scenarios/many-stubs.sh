#!/bin/sh
# With many stubs the service, `status` and `run` cost no more than with one: a look at one stub reads nothing of the others.
#: suite trixie
#: device edu,addr=5.0,multifunction=on
#: device edu,addr=5.1
#: device edu,addr=5.2
#: device edu,addr=5.3
#: device edu,addr=5.4
#: device edu,addr=5.5
#: device edu,addr=5.6
#: device edu,addr=5.7
#: device edu,addr=6.0,multifunction=on
#: device edu,addr=6.1
#: device edu,addr=6.2
#: device edu,addr=6.3
#: device edu,addr=6.4
#: device edu,addr=6.5
#: device edu,addr=6.6
#: device edu,addr=6.7
#: device edu,addr=7.0,multifunction=on
#: device edu,addr=7.1
#: device edu,addr=7.2
#: device edu,addr=7.3
#: device edu,addr=7.4
#: device edu,addr=7.5
#: device edu,addr=7.6
#: device edu,addr=7.7
#: device edu,addr=8.0,multifunction=on
#: device edu,addr=8.1
#: device edu,addr=8.2
#: device edu,addr=8.3
#: device edu,addr=8.4
#: device edu,addr=8.5
#: device edu,addr=8.6
#: device edu,addr=8.7
#: device edu,addr=9.0,multifunction=on
#: device edu,addr=9.1
#: device edu,addr=9.2
#: device edu,addr=9.3
#: device edu,addr=9.4
#: device edu,addr=9.5
#: device edu,addr=9.6
#: device edu,addr=9.7
#: device edu,addr=a.0,multifunction=on
#: device edu,addr=a.1
#: device edu,addr=a.2
#: device edu,addr=a.3
#: device edu,addr=a.4
#: device edu,addr=a.5
#: device edu,addr=a.6
#: device edu,addr=a.7
#: device edu,addr=b.0,multifunction=on
#: device edu,addr=b.1
#: device edu,addr=b.2
#: device edu,addr=b.3
#: device edu,addr=b.4
#: device edu,addr=b.5
#: device edu,addr=b.6
#: device edu,addr=b.7
#: device edu,addr=c.0,multifunction=on
#: device edu,addr=c.1
#: device edu,addr=c.2
#: device edu,addr=c.3
#: device edu,addr=c.4
#: device edu,addr=c.5
#: device edu,addr=c.6
#: device edu,addr=c.7
#: all
#: cpus 2
#: timeout 800
#: timeout-all 3600
. /rig/scenarios/lib.sh
# Counts of stubs at which is measured, the first one for comparison.
AT=${AT:-1 8 16}
[ -z "$ALL" ] || AT="1 8 16 32 64"
# Most requests of the service to xenstored for one look at a stub.
MOST=20

ms() {
    read -r began _ </proc/uptime
    "$@" >/tmp/timed 2>&1 || { cat /tmp/timed; failure "$*"; }
    read -r now _ </proc/uptime
    awk -v a="$began" -v b="$now" 'BEGIN { printf "%.0f", (b - a) * 1000 }'
}
# writes: how often the worker has written so far. Each request to xenstored is one write, and little else is.
writes() { awk '/^syscw/ { print $2 }' "/proc/$(service_pid)/io"; }
# ticks: processor time of the worker, in hundredths of a second.
ticks() { awk '{ print $14 + $15 }' "/proc/$(service_pid)/stat"; }
# quiet_writes: waits until the worker has made no write for a second.
quiet_writes() {
    until before=$(writes) && sleep 1 && [ "$(($(writes) - before))" -le 2 ]; do :; done
}
# requests COMMAND...: how often the worker writes over COMMAND, and until it is quiet again.
requests() {
    quiet_writes
    first=$(writes)
    "$@" >/dev/null || failure "$*"
    sleep 1
    quiet_writes
    echo $(($(writes) - first))
}
# touch_node NODE: an event for the service, and no change.
touch_node() { xenstore-write "$1" "$(xenstore-read "$1")"; }
another_comes() { xl create -q /root/another.cfg; }
another_goes() { xl destroy another; }
# once COUNT: the figures with so many stubs.
once() {
    stub=$(xl domid "g$1-bulkhead")
    guest=$(xl domid "g$1")
    look=$(requests touch_node "/local/domain/$stub/device/bulkhead/0/state")
    backup=$(requests touch_node "/local/domain/$stub/backend/pci/$guest/0/state")
    state=$(requests touch_node "/local/domain/$guest/device/pci/0/state")
    comes=$(requests another_comes)
    goes=$(requests another_goes)
    # The middle one of three.
    for _ in 1 2 3; do ms bulkhead status && echo; done | sort -n >/tmp/status
    status=$(sed -n 2p /tmp/status)
    began=$(ticks)
    sleep 10
    idle=$((($(ticks) - began) * 10))
    figure "many-run-$1" "$run" ms
    figure "many-status-$1" "$status" ms
    figure "many-requests-look-$1" "$look" requests
    figure "many-requests-backup-$1" "$backup" requests
    figure "many-requests-guest-state-$1" "$state" requests
    figure "many-requests-domain-comes-$1" "$comes" requests
    figure "many-requests-domain-goes-$1" "$goes" requests
    figure "many-idle-$1" "$idle" "ms of the processor in 10 s"
    figure "many-memory-$1" "$(((free - $(xl info free_memory)) / $1))" "MiB for each stub and its guest of 16 MiB"
    check "with $1: a look at a stub takes $MOST requests at most" [ "$look" -le $MOST ]
    check "with $1: a backup takes $MOST requests at most" [ "$backup" -le $MOST ]
    check "with $1: a guest's state that stays takes none" [ "$state" -le 2 ]
    if [ "$1" = 1 ]; then
        run1=$run status1=$status comes1=$comes goes1=$goes
        return
    fi
    # Some writes are the answers to xl's own looks.
    check "with $1: a domain that comes takes $comes requests, $comes1 with one stub" [ "$comes" -le $((comes1 + 10)) ]
    check "with $1: a domain that goes takes $goes requests, $goes1 with one stub" [ "$goes" -le $((goes1 + 10)) ]
    check "with $1: status takes $status ms, $status1 with one stub" [ "$status" -le $((status1 * 2 + 200)) ]
    check "with $1: run takes $run ms, $run1 with one stub" [ "$run" -le $((run1 * 2)) ]
}

bare_guest another "mode=ops count=1"
free=$(xl info free_memory)
count=0
for slot in 05 06 07 08 09 0a 0b 0c; do
    for function in 0 1 2 3 4 5 6 7; do
        case " $AT" in *" $count") break 2 ;; esac
        count=$((count + 1))
        bare_guest g$count "mode=ops count=1"
        run=$(ms bulkhead run /root/g$count.cfg --device 0000:00:$slot.$function)
        echo "ok: run $count: $run ms"
        case " $AT " in *" $count "*) once $count ;; esac
    done
done
equal "complaints in dom0" "" "$(complaints)"
success
