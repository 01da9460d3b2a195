# shellcheck shell=dash
# What each kind of dom0 does with /rig/script. Its first process, or a unit of its systemd, reads this file; it defines
# give_up REASON..., which ends the machine.
#
# Four virtio-serial ports lead to the host: "events" (one line per step, read by the rig), "output" (what the
# script prints), "results" (a tar archive, sent at the end) and "control" (by which the host can end the script).

# The device of a virtio-serial port, by the name it was given on QEMU's command line.
port() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        for entry in /sys/class/virtio-ports/*; do
            if [ "$(cat "$entry/name" 2>/dev/null)" = "rig.$1" ]; then
                echo "/dev/${entry##*/}"
                return
            fi
        done
        usleep 200000
    done
    give_up "no virtio-serial port named rig.$1"
}

open_events() { exec 9>"$(port events)"; }
event() { echo "$*" >&9; }

# Runs /rig/script until it ends, or until the host has it ended.
run_script() {
    event phase script
    mkfifo /run/rig/output
    cat /run/rig/output >"$(port output)" 9>&- &
    reader=$!
    # In a session of its own, so that it can be ended with all that it started.
    cd /root || give_up "no /root"
    setsid /rig/script >/run/rig/output 2>&1 </dev/null 9>&- &
    script=$!
    (
        read -r word && [ "$word" = stop ] && kill -KILL -$script
    ) <"$(port control)" 9>&- &
    stopper=$!
    wait $script
    code=$?
    kill $stopper 2>/dev/null
    event exit $code

    # Whatever the script left in the background may hold its output open: it gets a second to be read, no more.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 $reader 2>/dev/null || break
        usleep 100000
    done
}

# Sends the logs, and with them what is in /run/rig/results already.
send_results() {
    event phase results
    mkdir -p /run/rig/results/guests /run/rig/results/files
    cp -r /rig/out/. /run/rig/results/files/
    cd /var/log/xen || give_up "no /var/log/xen"
    # Their names are those of domains, which have no spaces.
    # shellcheck disable=SC2044
    for log in $(find . -type f); do
        name=${log##*/}
        tr -d '\r' <"$log" >"/run/rig/results/guests/${name#guest-}"
    done
    xl dmesg >/run/rig/results/xl-dmesg.log 2>&1
    dmesg >/run/rig/results/dom0-dmesg.log 2>&1
    tar -c -f - -C /run/rig/results . >"$(port results)"
}
