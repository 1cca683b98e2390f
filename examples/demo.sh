#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The demo: pods with several networks on this machine, a ping across each network, and a check that everything was removed.
set -euo pipefail
cd "$(dirname "$0")/.."
lab=${DEMO_LAB:-demo}
multus=("${MULTUS_PY:-.venv/bin/multus-py}" lab)

# List everything that this lab could leave on the machine.
traces() {
    ls -d /run/netns/$lab.* /run/multus-py/lab/$lab 2>/dev/null || true
    ls -d /var/lib/cni/networks/{pod-network,signalling,media,management} 2>/dev/null || true
    ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/link \1/' | sort
    nft list tables 2>/dev/null || true
}

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }

"${multus[@]}" down --name "$lab" 2>/dev/null
before=$(traces)
trap '"${multus[@]}" down --name "$lab" >/dev/null 2>&1 || true' EXIT

title "1. Pods from examples/*.yaml"
"${multus[@]}" up examples --name "$lab"

title "2. The interfaces in the kernel"
"${multus[@]}" show --name "$lab"

title "3. The caller pings the callee across each network"
"${multus[@]}" show --json --name "$lab" | python3 -c '
import json, sys
pods = {pod["pod"]: pod["interfaces"] for pod in json.load(sys.stdin)}
for interface in pods["callee"]:
    for address in interface["ips"]:
        print(interface["network"], address.split("/")[0])
' | while read -r network address; do
    # Duplicate address detection of a new IPv6 address may still run (RFC 4862): ping waits for a second answer.
    answer=$("${multus[@]}" exec --name "$lab" caller -- ping -q -n -c 2 -i 0.2 -W 3 "$address" </dev/null 2>&1) ||
        { echo "$answer"; echo "no answer from $address on $network" >&2; exit 1; }
    printf '%-24s %-18s %s\n' "$network" "$address" "$(grep -o '[0-9]* received' <<<"$answer")"
done

title "4. The network-status that the plugin published for the callee"
"${multus[@]}" show --status callee --name "$lab"

title "5. Remove the lab"
"${multus[@]}" down --name "$lab"
after=$(traces)
if [ "$before" != "$after" ]; then
    diff <(echo "$before") <(echo "$after") || true
    echo "the lab left something behind" >&2
    exit 1
fi
echo "namespaces, links, nft tables and IPAM files are as they were"
