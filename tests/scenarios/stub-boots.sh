#!/bin/sh
# The stub boots in 4 MiB from a plain `xl create stubdom.cfg`, says so, idles, and obeys xl.
. /rig/scenarios/lib.sh

log=$(stub_log stub)
check "xl create stubdom.cfg" xl create -q /etc/bulkhead/stubdom.cfg 'name="stub"'
check "it greets" wait-log "$log" "Bulkhead stub .* on Xen $(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor)" 10
check "it says that there is nothing to do yet" wait-log "$log" "no guest" 10
equal "memory of the domain, MiB" 4 "$(xl list stub | awk 'NR == 2 { print $3 }')"

cpu_time() { xl list stub | awk 'NR == 2 { print $6 }'; }
before=$(cpu_time)
sleep 5
equal "CPU time burnt by 5 s of idling, s" 0.0 "$(awk -v a="$before" -v b="$(cpu_time)" 'BEGIN { printf "%.1f", b - a }')"

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
