"""The samples of Twilio's document on Conversation Orchestrator that use nothing but `requests`.

Standard input: the plan of `samples.rs`, one JSON object. Standard output: one JSON object of what they were
answered. `tests/parts/node/samples.js` is the same with `fetch`.
"""

import json
import sys
import time

import requests

# Longest wait for the configuration, and the pause between two looks, in seconds.
LIMIT = 30
POLL_INTERVAL = 0.05


def main():
    plan = json.load(sys.stdin)
    base = plan["baseUrl"] + "/v2"
    auth = (plan["accountSid"], plan["authToken"])
    said = {}

    created = requests.post(
        f"{base}/ControlPlane/Configurations", auth=auth, json=plan["configuration"]
    )
    said["created"] = {"status": created.status_code, "body": created.json()}
    config_id = by_display_name(base, auth, plan["configuration"]["displayName"])
    configuration = f"{base}/ControlPlane/Configurations/{config_id}"

    def read():
        return requests.get(configuration, auth=auth).json()

    said["configuration"] = read()

    # Update a configuration: fetch, change one field, put the complete object back.
    current = read()
    current["channelSettings"]["VOICE"]["captureRules"].append(plan["rule"])
    said["updated"] = requests.put(configuration, auth=auth, json=current).status_code
    said["afterUpdate"] = until(read, lambda now: now["version"] == 2)

    # Link an Intelligence configuration.
    current = read()
    current["intelligenceConfigurationIds"] = [plan["intelligence"]]
    said["linked"] = requests.put(configuration, auth=auth, json=current).status_code
    said["afterLink"] = until(read, lambda now: now["version"] == 3)

    # Read conversations and communications, with the capitals of the document.
    conversations = requests.get(
        f"{base}/Conversations", auth=auth, params={"Status": "ACTIVE", "PageSize": 10}
    ).json()
    said["listed"] = []
    for conv in conversations.get("conversations", []):
        comms = requests.get(
            f"{base}/Conversations/{conv['id']}/Communications", auth=auth
        ).json()
        count = len(comms.get("communications", []))
        said["listed"].append({"id": conv["id"], "communications": count})
    said["more"] = conversations["meta"]["nextToken"] is not None

    # Close a conversation.
    closed = requests.patch(
        f"{base}/Conversations/{said['listed'][0]['id']}", auth=auth, json={"status": "CLOSED"}
    )
    said["closed"] = {"status": closed.status_code, "body": closed.json()}
    json.dump(said, sys.stdout)


def by_display_name(base, auth, name):
    def look():
        listed = requests.get(f"{base}/ControlPlane/Configurations", auth=auth).json()
        return next((c for c in listed["configurations"] if c["displayName"] == name), None)

    return until(look, lambda found: found is not None)["id"]


def until(look, accepts):
    deadline = time.monotonic() + LIMIT
    while not accepts(seen := look()):
        assert time.monotonic() < deadline, f"not within {LIMIT} s: {seen}"
        time.sleep(POLL_INTERVAL)
    return seen


main()
