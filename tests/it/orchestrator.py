"""Every step of Twilio's two documents on Conversation Orchestrator, made with Twilio's own SDK for Python.

Standard input: the plan of `official_sdks.rs`, one JSON object. Standard output: one JSON object of what the
SDK's objects said after each step, a date that the SDK read as one written {"date": "..."}. The steps and the
names are those of `tests/parts/node/orchestrator.js`.
"""

import datetime
import json
import sys
import time
from urllib.parse import urlsplit

from twilio.base.exceptions import TwilioException
from twilio.rest import Client
from twilio.rest.conversations.v2.communication import CommunicationList
from twilio.rest.conversations.v2.configuration import ConfigurationList
from twilio.rest.conversations.v2.conversation import ConversationList
from twilio.rest.conversations.v2.participant import ParticipantList

# Longest wait for an operation, and the pause between two looks at it, in seconds.
OPERATION_LIMIT = 30
POLL_INTERVAL = 0.05

NewConfiguration = ConfigurationList.CreateConfigurationRequest
WholeConfiguration = ConfigurationList.UpdateConfigurationRequest
PartConfiguration = ConfigurationList.PatchConfigurationRequest
NewConversation = ConversationList.CreateConversationWithConfigRequest
WholeConversation = ConversationList.UpdateConversationByIdRequest
PartConversation = ConversationList.PatchConversationByIdRequest
NewParticipant = ParticipantList.CreateParticipantInConversationRequest
WholeParticipant = ParticipantList.UpdateParticipantInConversationRequest
NewCommunication = CommunicationList.CreateCommunicationInConversationRequest


def main():
    plan = json.load(sys.stdin)
    client = connect(plan, plan["apiSecret"])
    v2 = client.conversations.v2
    said = {}
    create_configuration(v2, plan, said)
    create_conversation(client, plan, said)
    read_singly(v2, said)
    list_all(v2, plan, said)
    replace(v2, plan, said)
    refuse(client, plan, said)
    close_and_delete(v2, plan, said)
    fill_up(v2, plan, said)
    json.dump(shown(said), sys.stdout)


def connect(plan, secret):
    client = Client(plan["apiKey"], secret, plan["accountSid"])
    client.conversations.base_url = plan["baseUrl"]
    return client


# Document "Create conversations programmatically": create, then poll the operation.
def create_configuration(v2, plan, said):
    create = v2.configurations.create
    said["accepted"] = create(create_configuration_request=NewConfiguration(plan["configuration"]))
    said["operation"] = finished(v2, said["accepted"].status_url)
    said["configurationId"] = said["operation"].related["configurationId"]
    said["configuration"] = v2.configurations(said["configurationId"]).fetch()
    # The same request with the same key is the same operation.
    keyed = NewConfiguration(plan["keyed"])
    key = plan["idempotencyKey"]
    first = create(idempotency_key=key, create_configuration_request=keyed).status_url
    again = create(idempotency_key=key, create_configuration_request=keyed).status_url
    said["keyed"] = {"first": first, "again": again}
    said["keyedId"] = finished(v2, first).related["configurationId"]


def create_conversation(client, plan, said):
    v2 = client.conversations.v2
    wanted = {"configurationId": said["configurationId"], **plan["conversation"]}
    said["conversation"] = v2.conversations.create(NewConversation(wanted))
    id = said["conversation"].id
    said["participant"] = v2.participants(id).create(NewParticipant(plan["participant"]))
    said["communications"] = [
        v2.communications(id).create(NewCommunication(communication))
        for communication in plan["communications"]
    ]
    # The SDK's resources hide headers; its client shows them.
    conflict = client.request(
        "POST",
        plan["baseUrl"] + "/v2/Conversations",
        headers={"Content-Type": "application/json"},
        data={"configurationId": said["configurationId"], "participants": plan["conflicting"]},
    )
    said["conflict"] = {
        "status": conflict.status_code,
        "conflictingId": conflict.headers.get("x-conflicting-resource-id"),
    }


def read_singly(v2, said):
    id = said["conversation"].id
    said["read"] = {
        "conversation": v2.conversations(id).fetch(),
        "participant": v2.participants(id, said["participant"].id).fetch(),
        "communications": [
            v2.communications(id, communication.id).fetch()
            for communication in said["communications"]
        ],
    }


def list_all(v2, plan, said):
    id = said["conversation"].id
    closed = ids(v2.conversations.stream(status=["CLOSED"], page_size=7))
    first = v2.conversations.page(status=["CLOSED"], page_size=7)
    second = first.next_page()
    back = second.previous_page()
    store = plan["configuration"]["memoryStoreId"]
    channel = plan["channelId"]
    said["lists"] = {
        "configurations": ids(v2.configurations.list(page_size=1)),
        "configurationsOfStore": ids(v2.configurations.list(memory_store_id=store)),
        "participants": v2.participants(id).list(page_size=1),
        "communications": ids(v2.communications(id).list(page_size=1)),
        "communicationsOfChannel": ids(v2.communications(id).list(channel_id=channel)),
        "conversationsOfChannel": ids(v2.conversations.list(channel_id=channel)),
        "active": ids(v2.conversations.list(status=["ACTIVE"], page_size=1)),
        "activeAndClosed": ids(v2.conversations.list(status=["ACTIVE", "CLOSED"], page_size=1000)),
        "closed": closed,
        "limited": ids(v2.conversations.list(status=["CLOSED"], limit=3)),
        "pageSize": first.page_size,
        "pageBackIsTheSame": closed[:7] == ids(back),
        "nothingBeforeTheFirst": first.previous_page() is None,
        "ofOneConversation": {
            conversation: ids(v2.communications(conversation).list(page_size=3))
            for conversation in closed[: plan["wholeConversations"]]
        },
    }


# PUT replaces everything: GET, change, PUT; and what happens to a field that is left out.
def replace(v2, plan, said):
    id = said["conversation"].id
    participant = v2.participants(id, said["participant"].id)
    said["replaced"] = {
        "conversation": v2.conversations(id).update(WholeConversation(plan["conversationUpdate"])),
        "participant": participant.update(WholeParticipant(plan["participantUpdate"])),
    }
    configuration = v2.configurations(said["configurationId"])
    current = plain(configuration.fetch())
    whole = {name: current[name] for name in plan["configurationFields"] if name in current}
    whole["channelSettings"][plan["ruleChannel"]]["captureRules"].append(plan["rule"])
    accepted = configuration.update(update_configuration_request=WholeConfiguration(whole))
    said["replaced"]["operation"] = finished(v2, accepted.status_url)
    said["replaced"]["configuration"] = configuration.fetch()
    for field in plan["forgotten"]:
        del whole[field]
    careless = configuration.update(update_configuration_request=WholeConfiguration(whole))
    said["replaced"]["carelessOperation"] = finished(v2, careless.status_url)
    said["replaced"]["careless"] = configuration.fetch()


def refuse(client, plan, said):
    v2 = client.conversations.v2
    id = said["conversation"].id
    configuration = v2.configurations(said["configurationId"])
    create = v2.configurations.create
    stranger = connect(plan, "not the secret").conversations.v2
    storeless = {k: v for k, v in plan["configuration"].items() if k != "memoryStoreId"}
    renamed = PartConfiguration({"displayName": "patched"})
    unknown = NewConversation({"configurationId": "conv_configuration_nowhere"})
    said["refused"] = {
        "credentials": refusal(stranger.conversations(id).fetch),
        "conversation": refusal(v2.conversations("conv_conversation_nowhere").fetch),
        "communication": refusal(v2.communications(id, "conv_communication_nowhere").fetch),
        "participant": refusal(v2.participants(id, "conv_participant_nowhere").fetch),
        "configuration": refusal(v2.configurations("conv_configuration_nowhere").fetch),
        "operation": refusal(v2.operations("conv_operation_nowhere").fetch),
        "pageSize": refusal(v2.conversations.list, page_size=1001),
        "status": refusal(v2.conversations.list, status=["ENDED"]),
        "pageToken": refusal(v2.conversations.page, page_token="made-up"),
        "withoutStore": refusal(create, create_configuration_request=NewConfiguration(storeless)),
        "patchedConfiguration": refusal(
            configuration.patch, patch_configuration_request=renamed
        ),
        "unknownConfiguration": refusal(v2.conversations.create, unknown),
    }
    # The SDK's resources always send JSON; its client sends what it is told.
    conversations = plan["baseUrl"] + "/v2/Conversations"
    form = client.request("POST", conversations, data={"configurationId": said["configurationId"]})
    said["refused"]["form"] = {"status": form.status_code, "code": json.loads(form.text)["code"]}


def close_and_delete(v2, plan, said):
    id = said["conversation"].id
    conversation = v2.conversations(id)
    configuration = v2.configurations(said["configurationId"])
    said["closed"] = conversation.patch(PartConversation({"status": "CLOSED"}))
    said["refused"]["reopened"] = refusal(conversation.patch, PartConversation({"status": "ACTIVE"}))
    participant = NewParticipant(plan["participant"])
    said["refused"]["joinedClosed"] = refusal(v2.participants(id).create, participant)
    communication = NewCommunication(plan["communications"][0])
    said["refused"]["saidInClosed"] = refusal(v2.communications(id).create, communication)
    # This SDK gives a delete's success alone, not its operation.
    assert conversation.delete() and configuration.delete()
    said["deleted"] = {
        "conversation": gone(conversation.fetch),
        "configuration": gone(configuration.fetch),
    }


# Ten configurations an account: the operation of the eleventh fails.
def fill_up(v2, plan, said):
    said["limit"] = {"completed": 0}
    for _ in range(plan["configurationLimit"] + 1):
        wanted = NewConfiguration(plan["keyed"])
        accepted = v2.configurations.create(create_configuration_request=wanted)
        operation = finished(v2, accepted.status_url)
        if operation.status != "COMPLETED":
            said["limit"]["failed"] = operation
            break
        said["limit"]["completed"] += 1
    said["limit"]["configurations"] = len(v2.configurations.list())


# The SDK's object of an accepted operation has its URL alone; the id is the last part of it.
def finished(v2, status_url):
    id = urlsplit(status_url).path.split("/")[-1]
    deadline = time.monotonic() + OPERATION_LIMIT
    while True:
        operation = v2.operations(id).fetch()
        if operation.status != "PENDING":
            return operation
        assert time.monotonic() < deadline, f"{status_url}: still pending"
        time.sleep(POLL_INTERVAL)


# The refusal that `fetch` ends with once a delete is carried out.
def gone(fetch):
    deadline = time.monotonic() + OPERATION_LIMIT
    while True:
        try:
            fetch()
        except TwilioException:
            return refusal(fetch)
        assert time.monotonic() < deadline, "still there"
        time.sleep(POLL_INTERVAL)


def refusal(call, *args, **named):
    try:
        return {"unexpected": call(*args, **named)}
    except TwilioException as error:
        # Of a page the SDK gives the answer itself.
        if len(error.args) == 2:
            answer = error.args[1]
            body = json.loads(answer.text)
            return {"status": answer.status_code, "code": body["code"], "message": body["message"]}
        message = getattr(error, "msg", None) or getattr(error, "detail", None)
        return {"status": error.status, "code": error.code, "message": message}


def ids(resources):
    return [resource.id for resource in resources]


# An SDK object's public fields under the names of the API; what the API left out is left out.
def plain(instance):
    return {
        camel(name): value
        for name, value in vars(instance).items()
        if not name.startswith("_") and value is not None
    }


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


# Plain values of the SDK's objects; only what it parsed is a date.
def shown(value):
    if isinstance(value, datetime.datetime):
        return {"date": value.isoformat()}
    if isinstance(value, dict):
        return {name: shown(field) for name, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return shown(plain(value))


main()
