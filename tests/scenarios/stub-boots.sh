#!/bin/sh
# The stub boots in 4 MiB from a plain `xl create stubdom.cfg`, says so, idles, and obeys xl.
. /rig/scenarios/lib.sh

log=$(stub_log stub)
check "xl create stubdom.cfg" xl create -q /etc/bulkhead/stubdom.cfg 'name="stub"'
check "it greets" wait-log "$log" "Bulkhead stub .* on Xen $(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor)" 10
check "it says that there is nothing to do yet" wait-log "$log" "no guest" 10
equal "memory of the domain, MiB" 4 "$(xl list stub | awk 'NR == 2 { print $3 }')"

# Whatever would wake the stub, or end it, is a timer of Xen's. dom0 has neither of the first two kinds, and one of the
# third for each of its processors.
sleep 2
timers=0 shots=0
for _ in 1 2 3 4 5 6; do
    timers=$((timers + $(xen_lines a 'domain_watchdog_timeout|poll_timer_fn')))
    now=$(xen_lines a 'vcpu_singleshot_timer_fn')
    [ "$now" -le "$shots" ] || shots=$now
    usleep 130000
done
equal "timers of a stub that idles, in six looks" 0 $timers
check "no timer is set for a processor but dom0's" [ "$shots" -le "$(nproc)" ]
check "Xen shows timers by name" [ "$(xen_lines a 'vcpu_singleshot_timer_fn|time_calibration')" -gt 0 ]

# Longer than Xen's watchdog would wait.
check "xl pause" xl pause stub
sleep 12
check "xl unpause" xl unpause stub
sleep 1
equal "restarts, or ends, of a stub that was paused" "" "$(grep -E 'restart|fault' "$log"; xl list stub | awk 'NR == 2 && $5 ~ /[sc]/')"

check "xl shutdown" xl shutdown -w stub
check "it says that it powers off" wait-log "$log" "poweroff" 5
# What is left shows that it was meant, so that nobody brings it back.
within 5 "the domain stays, shut down" sh -c "xl list stub | awk 'NR == 2 { exit \$5 !~ /s/ }'"
check "xl destroy" xl destroy stub
refused "the domain is gone" "invalid domain|does not exist|not.*found" xl domid stub

check "xl create once more" xl create -q /etc/bulkhead/stubdom.cfg 'name="stub"' 'on_reboot="destroy"'
within 10 "it is up again" sh -c "[ \$(grep -c 'no guest' $log) -ge 2 ]"
check "xl reboot" xl reboot stub
check "it says that it reboots" wait-log "$log" "reboot" 5
success
