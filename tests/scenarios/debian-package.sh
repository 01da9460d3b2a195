#!/bin/sh
# The package on a Debian host: installed, installed anew under two guests, refused to go, removed and purged; a service that hangs is replaced.
#: host debian
#: all
#: device e1000e,netdev=n0,addr=5
#: device e1000e,netdev=n1,addr=6
#: device edu,addr=7
#: suite trixie
#: cpus 2
#: timeout 900
. /rig/scenarios/lib.sh
BDF=0000:00:05.0 OTHER=0000:00:06.0 EDU=0000:00:07.0
IMAGE=/usr/lib/bulkhead/bulkhead-stub
export DEBIAN_FRONTEND=noninteractive

# is WHAT UNIT STATE: as `systemctl is-WHAT` tells.
is() { [ "$(systemctl "is-$1" "$2")" = "$3" ]; }
# replaced PID COMMAND: COMMAND prints another process than PID.
replaced() {
    now=$($2)
    [ -n "$now" ] && [ "$now" != "$1" ]
}
stopwatch() { read -r began _ </proc/uptime; }
# took NAME: a figure, the seconds since `stopwatch`.
took() {
    read -r now _ </proc/uptime
    figure "$1" "$(awk -v a="$began" -v b="$now" 'BEGIN { printf "%.1f", b - a }')" s
}
whole() { within 30 "a worker serves, and another stands by" complete; }
writes() { within 5 "$1: a write of the guest" in_guest g1 "setpci -s 00:00.0 CACHE_LINE_SIZE=$2"; }

install_bulkhead
for unit in bulkhead bulkhead-guests; do
    check "$unit is enabled" is enabled $unit enabled
    check "$unit runs" is active $unit active
done
for unit in bulkhead-seize.service bulkhead-metrics.socket; do
    check "$unit is the administrator's to enable" is enabled $unit disabled
done
whole
guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
check "e1000e comes up" network_up g1
check "the journal knows guest, stub and device" sh -c \
    "journalctl --no-pager GUEST=g1 STUB=g1-bulkhead DEVICE=$BDF | grep -q 'now interrupts by'"
# --- metrics, by the socket that systemd passes and within the bounds of the unit
check "systemctl enable --now bulkhead-metrics.socket" systemctl enable --now bulkhead-metrics.socket
check "a scrape starts the service behind it" sh -c "busybox wget -q -O /tmp/metrics http://127.0.0.1:9742/metrics && grep -q '^bulkhead_service_up 1' /tmp/metrics"
check "the stub is in it" grep -q '^bulkhead_device_pirqs{guest="g1",.*device="0000:00:05.0"} 3' /tmp/metrics
check "Xen's limit on interrupts, too" grep -q '^bulkhead_guest_pirqs_left' /tmp/metrics
equal "what its unit complains of" "" "$(journalctl --no-pager -u bulkhead-metrics -o cat | grep -E '^bulkhead: |denied|permitted|[Ff]ailed')"
check "systemctl disable --now" systemctl disable --now bulkhead-metrics.socket bulkhead-metrics.service

guest_config g2
check "bulkhead run of another guest" bulkhead run /root/g2.cfg --device $OTHER
check "its e1000e comes up" network_up g2
for guest in g1 g2; do
    in_guest $guest "(ping -c 5000 -i 0.1 -W 2 10.0.2.2 >/tmp/long 2>&1) >/dev/null 2>&1 &"
done

# --- a service that hangs
pid=$(service_pid)
stopwatch
kill -STOP "$pid"
within 20 "a worker that was stopped is replaced" replaced "$pid" service_pid
took worker-stopped
writes "after that" 10
whole
pid=$(launcher_pid)
stopwatch
kill -STOP "$pid"
within 75 "a launcher that was stopped is replaced" replaced "$pid" launcher_pid
took launcher-stopped
whole
writes "after that" 08

# --- restart and stop. Of a launcher that was killed systemd says that workers remain for a moment.
journalctl --quiet --lines 1 --cursor-file=/tmp/cursor >/dev/null
check "systemctl restart" systemctl restart bulkhead
whole
check "systemctl stop" systemctl stop bulkhead
equal "processes that are left" "" "$(processes bulkhead)$(processes bulkhead-worker)$(processes bulkhead-spare)"
check "systemctl start" systemctl start bulkhead
whole
equal "complaints of systemd" "" "$(journalctl --no-pager --cursor-file=/tmp/cursor | grep -E 'remains running|left-over process')"

# --- upgrade
pid=$(launcher_pid)
stub=$(xl domid g1-bulkhead)
: >$IMAGE
check "apt install, as for an upgrade" apt-get -qq install --yes --reinstall /rig/bulkhead_*.deb
check "the service is another one" replaced "$pid" launcher_pid
whole
check "the stub is the same" [ "$(xl domid g1-bulkhead)" = "$stub" ]
equal "processes whose program is gone" "" "$(readlink /proc/[0-9]*/exe | grep 'bulkhead (deleted)')"
writes "after the upgrade" 10
check "xl destroy of the stub" xl destroy g1-bulkhead
within 30 "it comes back with its domid" sh -c "[ \"\$(xl domid g1-bulkhead)\" = $stub ]"
within 20 "a write" in_guest g1 "setpci -s 00:00.0 CACHE_LINE_SIZE=08"
guest_config g3
check "a new guest has its stub from the new image" bulkhead run /root/g3.cfg --device $EDU
check "it ends" bulkhead destroy g3

# --- removal
refused "apt remove under a guest" "g1, g2 would lose the devices" apt-get --yes remove bulkhead
check "the service runs on" is active bulkhead active
writes "after that" 10
for guest in g1 g2; do
    in_guest $guest "killall -INT ping; sleep 1; tail -n 2 /tmp/long" >/tmp/long
    say "$guest: $(sed -n '/transmitted/p' /tmp/long)"
    check "$guest: no ping was lost" grep -q ' 0% packet loss' /tmp/long
done
check "bulkhead shutdown" bulkhead shutdown --all --wait 10 --destroy
equal "stubs" "[]" "$(bulkhead status --json | jq -c .stubs)"
check "apt remove" apt-get --yes remove bulkhead
check "settings stay" test -e /etc/bulkhead/policy.toml
check "apt install again" apt-get -qq install --yes /rig/bulkhead_*.deb
check "the service runs" is active bulkhead active
touch /etc/bulkhead/guests.d/web.toml
check "apt purge" apt-get --yes purge bulkhead
equal "what is left" "" \
    "$(ls -d /etc/bulkhead /var/log/bulkhead /run/bulkhead /usr/lib/bulkhead /etc/systemd/system/*/bulkhead* 2>/dev/null)"
success
