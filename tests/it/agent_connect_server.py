"""The callback server of Twilio's agent-connect package, with its SMS channel, on loopback.

Argument: the plan of `agent_connect.rs`, one JSON object. Standard output: a JSON line for each message
that the package gave to its application, and for each conversation that it saw end. The package has no
setting for the base URL of its clients, so what makes that URL is replaced; all else is as published.
"""

import json
import sys

from tac import TAC
from tac.channels.sms import SMSChannel
from tac.context.base import BaseAPIClient
from tac.core.config import TACConfig
from tac.server import TACFastAPIServer
from tac.server.config import TACServerConfig


def main():
    plan = json.loads(sys.argv[1])
    BaseAPIClient._build_base_url = staticmethod(lambda product, region: plan["baseUrl"])
    tac = TAC(
        TACConfig(
            account_sid=plan["accountSid"],
            auth_token=plan["authToken"],
            api_key=plan["apiKey"],
            api_secret=plan["apiSecret"],
            conversation_configuration_id=plan["configurationId"],
            phone_number=plan["phoneNumber"],
        )
    )

    async def ready(message, context, _memory):
        tell(message=message, conversation=context.conversation_id)

    async def ended(context):
        tell(ended=context.conversation_id)

    tac.on_message_ready(ready)
    tac.on_conversation_ended(ended)
    server = TACFastAPIServer(
        tac=tac,
        messaging_channels=[SMSChannel(tac)],
        config=TACServerConfig(host="127.0.0.1", port=plan["port"]),
    )

    @server.app.get("/health")
    async def health():
        return {"status": "ok"}

    server.start()


def tell(**line):
    print(json.dumps(line), flush=True)


main()
