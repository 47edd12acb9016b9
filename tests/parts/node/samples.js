// The samples of Twilio's document on Conversation Orchestrator that use nothing but `fetch`, one after the
// other. Standard input: the plan of `tests/it/samples.rs`, one JSON object. Standard output: one JSON
// object of what they were answered. `tests/it/samples.py` is the same with `requests`.
'use strict';

// Longest wait for the configuration, and the pause between two looks.
const LIMIT_MS = 30000;
const POLL_INTERVAL_MS = 50;

async function main() {
  const plan = JSON.parse(await text(process.stdin));
  const base = `${plan.baseUrl}/v2`;
  const said = {};

  const configResponse = await fetch(`${base}/ControlPlane/Configurations`, {
    method: 'POST',
    headers: getAuthHeaders(plan),
    body: JSON.stringify(plan.configuration),
  });
  said.created = { status: configResponse.status, body: await configResponse.json() };
  const configId = await byDisplayName(base, plan);
  const configuration = `${base}/ControlPlane/Configurations/${configId}`;
  const read = () => fetch(configuration, { headers: getAuthHeaders(plan) }).then((r) => r.json());
  said.configuration = await read();

  // Update a configuration: fetch, change one field, put the complete object back.
  let current = await read();
  current.channelSettings.VOICE.captureRules.push(plan.rule);
  said.updated = await put(configuration, current, plan);
  said.afterUpdate = await until(read, (now) => now.version === 2);

  // Link an Intelligence configuration.
  current = await read();
  current.intelligenceConfigurationIds = [plan.intelligence];
  said.linked = await put(configuration, current, plan);
  said.afterLink = await until(read, (now) => now.version === 3);

  // Read conversations and communications, with the capitals of the document.
  const conversations = await fetch(`${base}/Conversations?Status=ACTIVE&PageSize=10`, {
    headers: getAuthHeaders(plan),
  }).then((r) => r.json());
  said.listed = [];
  for (const conv of conversations.conversations ?? []) {
    const comms = await fetch(`${base}/Conversations/${conv.id}/Communications`, {
      headers: getAuthHeaders(plan),
    }).then((r) => r.json());
    said.listed.push({ id: conv.id, communications: (comms.communications ?? []).length });
  }
  said.more = conversations.meta.nextToken !== null;

  // Close a conversation.
  const closed = await fetch(`${base}/Conversations/${said.listed[0].id}`, {
    method: 'PATCH',
    headers: getAuthHeaders(plan),
    body: JSON.stringify({ status: 'CLOSED' }),
  });
  said.closed = { status: closed.status, body: await closed.json() };
  process.stdout.write(`${JSON.stringify(said)}\n`);
}

function getAuthHeaders(plan) {
  const credentials = Buffer.from(`${plan.accountSid}:${plan.authToken}`).toString('base64');
  return {
    Authorization: `Basic ${credentials}`,
    'Content-Type': 'application/json',
  };
}

async function put(url, whole, plan) {
  const answer = await fetch(url, {
    method: 'PUT',
    headers: getAuthHeaders(plan),
    body: JSON.stringify(whole),
  });
  return answer.status;
}

async function byDisplayName(base, plan) {
  const look = async () => {
    const answer = await fetch(`${base}/ControlPlane/Configurations`, {
      headers: getAuthHeaders(plan),
    }).then((r) => r.json());
    return answer.configurations.find((c) => c.displayName === plan.configuration.displayName);
  };
  return (await until(look, (found) => found !== undefined)).id;
}

async function until(look, accepts) {
  const deadline = Date.now() + LIMIT_MS;
  for (;;) {
    const seen = await look();
    if (accepts(seen)) {
      return seen;
    }
    if (Date.now() > deadline) {
      throw new Error(`not within ${LIMIT_MS} ms: ${JSON.stringify(seen)}`);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL_MS));
  }
}

async function text(stream) {
  let all = '';
  for await (const chunk of stream) {
    all += chunk;
  }
  return all;
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
