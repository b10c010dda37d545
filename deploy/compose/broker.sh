#!/bin/bash
# A broker: format its folder if that is new, and serve. Arguments: its `server.properties`, the
# file with the cluster's id.
set -euo pipefail
config=$1 cluster=$(<"$2")
# board-admin must be known before anybody can log in to make it.
secret=$(sed -n 's/^listener\.name\.clients\.scram-sha-256.* password="\([0-9a-f]*\)";$/\1/p' "$config")
/opt/kafka/bin/kafka-storage.sh format --ignore-formatted --config "$config" \
    --cluster-id "$cluster" --add-scram "SCRAM-SHA-256=[name=board-admin,password=$secret]"
exec /opt/kafka/bin/kafka-server-start.sh "$config"
