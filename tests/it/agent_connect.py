"""What Twilio's agent-connect package asks of Conversation Orchestrator, by its own conversation client.

Standard input: the plan of `agent_connect.rs`, one JSON object. Standard output: one JSON object of what the
client's models said. The client has no setting for its base URL, so that attribute is set; its models are
strict and refuse an answer that lacks what they need.
"""

import asyncio
import json
import sys

import httpx
from tac.context.conversation import ConversationClient
from tac.models.conversation import CommunicationRequest, ParticipantAddress, ParticipantRequest


def main():
    plan = json.load(sys.stdin)
    said = {"configuration": client_of(plan).get_configuration(plan["configurationId"])}
    asyncio.run(talk(client_of(plan), plan, said))
    json.dump(shown(said), sys.stdout)


def client_of(plan, configuration_id=None):
    client = ConversationClient(
        api_key=plan["apiKey"],
        api_secret=plan["apiSecret"],
        configuration_id=configuration_id or plan["configurationId"],
    )
    client.base_url = plan["baseUrl"]
    return client


async def talk(client, plan, said):
    participants = [ParticipantRequest(**participant) for participant in plan["participants"]]
    conversation = await client.create_conversation(name=plan["name"], participants=participants)
    id = conversation.id
    said["conversation"] = conversation
    said["reused"] = await client.create_or_reuse_conversation(participants)
    # As the package does before it answers: itself, an agent without a name.
    agent = await client.add_participant(
        id, [ParticipantAddress(**plan["agentAddress"])], "AI_AGENT"
    )
    said["agent"] = agent
    said["promoted"] = await client.update_participant(
        id, agent.id, "AGENT", agent.addresses, name="Echo"
    )
    joined = await client.list_participants(id)
    said["participants"] = joined
    ends = {address.address: one.id for one in joined for address in one.addresses}
    said["communications"] = []
    for communication in plan["communications"]:
        for end in [communication["author"], *communication["recipients"]]:
            end["participantId"] = ends[end["address"]]
        request = CommunicationRequest(**communication)
        said["communications"].append(await client.create_communication(id, request))
    said["listed"] = await client.list_communications(id)
    said["ofChannel"] = await client.list_communications(id, channel_id=plan["channelId"])
    said["firstOnly"] = await client.list_communications(id, page_size=1)
    said["active"] = await client.list_conversations(status=["ACTIVE", "INACTIVE"], page_size=1000)
    said["inactive"] = await client.update_conversation(id, "INACTIVE")
    await client.clear_status_callbacks(id)
    said["closed"] = await client.update_conversation(id, "CLOSED", name="Solved")
    stranger = client_of(plan, "conv_configuration_nowhere")
    try:
        said["unknown"] = await stranger.create_conversation()
    except httpx.HTTPStatusError as error:
        said["unknown"] = error.response.status_code


def shown(value):
    if isinstance(value, dict):
        return {name: shown(field) for name, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return value.model_dump(by_alias=True, exclude_none=True)


main()
