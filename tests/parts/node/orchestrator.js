// Every step of Twilio's two documents on Conversation Orchestrator, made with Twilio's own SDK. Standard
// input: the plan of `tests/it/official_sdks.rs`, one JSON object. Standard output: one JSON object of what
// the SDK's objects said after each step, a date that the SDK read as one written {"date": "..."}.
'use strict';

const { isDeepStrictEqual } = require('node:util');
const twilio = require('twilio');

// Longest wait for an operation, and the pause between two looks at it.
const OPERATION_LIMIT_MS = 30000;
const POLL_INTERVAL_MS = 50;

async function main() {
  const plan = JSON.parse(await text(process.stdin));
  const client = twilio(plan.apiKey, plan.apiSecret, { accountSid: plan.accountSid });
  client.conversations.baseUrl = plan.baseUrl;
  const v2 = client.conversations.v2;
  const said = {};

  await createConfiguration(v2, plan, said);
  await createConversation(client, plan, said);
  await readSingly(v2, plan, said);
  await list(v2, plan, said);
  await replace(v2, plan, said);
  await refuse(client, plan, said);
  await closeAndDelete(v2, plan, said);
  await fillUp(v2, plan, said);
  process.stdout.write(`${JSON.stringify(shown(said))}\n`);
}

// Document "Create conversations programmatically": create, then poll the operation.
async function createConfiguration(v2, plan, said) {
  said.accepted = await v2.configurations.create(plan.configuration);
  said.operation = await finished(v2, said.accepted.statusUrl);
  said.configurationId = said.operation.related.configurationId;
  said.configuration = await v2.configurations(said.configurationId).fetch();
  // The same request with the same key is the same operation.
  const key = { 'Idempotency-Key': plan.idempotencyKey };
  const first = await v2.configurations.create(plan.keyed, { ...key });
  const again = await v2.configurations.create(plan.keyed, { ...key });
  said.keyed = { first: first.statusUrl, again: again.statusUrl };
  said.keyedId = (await finished(v2, first.statusUrl)).related.configurationId;
}

async function createConversation(client, plan, said) {
  const v2 = client.conversations.v2;
  const wanted = { configurationId: said.configurationId, ...plan.conversation };
  said.conversation = await v2.conversations.create(wanted);
  const id = said.conversation.id;
  said.participant = await v2.participants(id).create(plan.participant);
  said.communications = [];
  for (const communication of plan.communications) {
    said.communications.push(await v2.communications(id).create(communication));
  }
  // The SDK's resources hide headers; its client shows them.
  const conflict = await client.request({
    method: 'post',
    uri: `${plan.baseUrl}/v2/Conversations`,
    headers: { 'Content-Type': 'application/json' },
    data: { configurationId: said.configurationId, participants: plan.conflicting },
  });
  said.conflict = {
    status: conflict.statusCode,
    conflictingId: conflict.headers['x-conflicting-resource-id'],
  };
}

async function readSingly(v2, plan, said) {
  const id = said.conversation.id;
  said.read = {
    conversation: await v2.conversations(id).fetch(),
    participant: await v2.participants(id, said.participant.id).fetch(),
    communications: [],
  };
  for (const { id: communication } of said.communications) {
    said.read.communications.push(await v2.communications(id, communication).fetch());
  }
}

async function list(v2, plan, said) {
  const id = said.conversation.id;
  const ids = (resources) => resources.map((resource) => resource.id);
  const closed = [];
  await v2.conversations.each({ status: ['CLOSED'], pageSize: 7 }, (conversation) => {
    closed.push(conversation.id);
  });
  const first = await v2.conversations.page({ status: ['CLOSED'], pageSize: 7 });
  const second = await first.nextPage();
  const back = await second.previousPage();
  said.lists = {
    configurations: ids(await v2.configurations.list({ pageSize: 1 })),
    configurationsOfStore: ids(
      await v2.configurations.list({ memoryStoreId: plan.configuration.memoryStoreId }),
    ),
    participants: await v2.participants(id).list({ pageSize: 1 }),
    communications: ids(await v2.communications(id).list({ pageSize: 1 })),
    communicationsOfChannel: ids(
      await v2.communications(id).list({ channelId: plan.channelId }),
    ),
    conversationsOfChannel: ids(await v2.conversations.list({ channelId: plan.channelId })),
    active: ids(await v2.conversations.list({ status: ['ACTIVE'], pageSize: 1 })),
    activeAndClosed: ids(
      await v2.conversations.list({ status: ['ACTIVE', 'CLOSED'], pageSize: 1000 }),
    ),
    closed,
    limited: ids(await v2.conversations.list({ status: ['CLOSED'], limit: 3 })),
    pageSize: first.pageSize,
    pageBackIsTheSame: isDeepStrictEqual(ids(first.instances), ids(back.instances)),
    nothingBeforeTheFirst: first.previousPage() === undefined,
    ofOneConversation: {},
  };
  for (const conversation of closed.slice(0, plan.wholeConversations)) {
    const communications = await v2.communications(conversation).list({ pageSize: 3 });
    said.lists.ofOneConversation[conversation] = ids(communications);
  }
}

// PUT replaces everything: GET, change, PUT; and what happens to a field that is left out.
async function replace(v2, plan, said) {
  const conversation = v2.conversations(said.conversation.id);
  said.replaced = {
    conversation: await conversation.update(plan.conversationUpdate),
    participant: await v2
      .participants(said.conversation.id, said.participant.id)
      .update(plan.participantUpdate),
  };
  const current = await v2.configurations(said.configurationId).fetch();
  const whole = {};
  for (const field of plan.configurationFields) {
    if (current[field] !== undefined && current[field] !== null) {
      whole[field] = current[field];
    }
  }
  whole.channelSettings[plan.ruleChannel].captureRules.push(plan.rule);
  const accepted = await v2.configurations(said.configurationId).update(whole);
  said.replaced.operation = await finished(v2, accepted.statusUrl);
  said.replaced.configuration = await v2.configurations(said.configurationId).fetch();
  for (const field of plan.forgotten) {
    delete whole[field];
  }
  const careless = await v2.configurations(said.configurationId).update(whole);
  said.replaced.carelessOperation = await finished(v2, careless.statusUrl);
  said.replaced.careless = await v2.configurations(said.configurationId).fetch();
}

async function refuse(client, plan, said) {
  const v2 = client.conversations.v2;
  const id = said.conversation.id;
  const stranger = twilio(plan.apiKey, 'not the secret', { accountSid: plan.accountSid });
  stranger.conversations.baseUrl = plan.baseUrl;
  const { memoryStoreId: _, ...storeless } = plan.configuration;
  said.refused = {
    credentials: await refusal(stranger.conversations.v2.conversations(id).fetch()),
    conversation: await refusal(v2.conversations('conv_conversation_nowhere').fetch()),
    communication: await refusal(v2.communications(id, 'conv_communication_nowhere').fetch()),
    participant: await refusal(v2.participants(id, 'conv_participant_nowhere').fetch()),
    configuration: await refusal(v2.configurations('conv_configuration_nowhere').fetch()),
    operation: await refusal(v2.operations('conv_operation_nowhere').fetch()),
    pageSize: await refusal(v2.conversations.list({ pageSize: 1001 })),
    status: await refusal(v2.conversations.list({ status: ['ENDED'] })),
    pageToken: await refusal(v2.conversations.page({ pageToken: 'made-up' })),
    withoutStore: await refusal(v2.configurations.create(storeless)),
    patchedConfiguration: await refusal(
      v2.configurations(said.configurationId).patch({ displayName: 'patched' }),
    ),
    unknownConfiguration: await refusal(
      v2.conversations.create({ configurationId: 'conv_configuration_nowhere' }),
    ),
  };
  // The SDK's resources always send JSON; its client sends what it is told.
  const form = await client.request({
    method: 'post',
    uri: `${plan.baseUrl}/v2/Conversations`,
    headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
    data: { configurationId: said.configurationId },
  });
  said.refused.form = { status: form.statusCode, code: form.body.code };
}

async function closeAndDelete(v2, plan, said) {
  const id = said.conversation.id;
  said.closed = await v2.conversations(id).patch({ status: 'CLOSED' });
  said.refused.reopened = await refusal(v2.conversations(id).patch({ status: 'ACTIVE' }));
  said.refused.joinedClosed = await refusal(v2.participants(id).create(plan.participant));
  said.refused.saidInClosed = await refusal(
    v2.communications(id).create(plan.communications[0]),
  );
  const deleted = await v2.conversations(id).remove();
  said.deleted = {
    operation: await finished(v2, deleted.statusUrl),
    conversation: await refusal(v2.conversations(id).fetch()),
  };
  await finished(v2, (await v2.configurations(said.configurationId).remove()).statusUrl);
  said.deleted.configuration = await refusal(v2.configurations(said.configurationId).fetch());
}

// Ten configurations an account: the operation of the eleventh fails.
async function fillUp(v2, plan, said) {
  said.limit = { completed: 0 };
  for (let n = 0; n <= plan.configurationLimit; n += 1) {
    const accepted = await v2.configurations.create(plan.keyed);
    const operation = await finished(v2, accepted.statusUrl);
    if (operation.status !== 'COMPLETED') {
      said.limit.failed = operation;
      break;
    }
    said.limit.completed += 1;
  }
  said.limit.configurations = (await v2.configurations.list()).length;
}

// The SDK's object of an accepted operation has its URL alone; the id is the last part of it.
async function finished(v2, statusUrl) {
  const id = new URL(statusUrl).pathname.split('/').pop();
  const deadline = Date.now() + OPERATION_LIMIT_MS;
  for (;;) {
    const operation = await v2.operations(id).fetch();
    if (operation.status !== 'PENDING') {
      return operation;
    }
    if (Date.now() > deadline) {
      throw new Error(`${statusUrl}: still pending after ${OPERATION_LIMIT_MS} ms`);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL_MS));
  }
}

async function refusal(promise) {
  try {
    return { unexpected: await promise };
  } catch (error) {
    if (error.status === undefined) {
      throw error;
    }
    return { status: error.status, code: error.code, message: error.message ?? error.detail };
  }
}

// Plain values of the SDK's objects; only what it parsed is a date.
function shown(value) {
  if (value instanceof Date) {
    return { date: value.toISOString() };
  }
  if (Array.isArray(value)) {
    return value.map(shown);
  }
  if (value === null || typeof value !== 'object') {
    return value;
  }
  const plain = typeof value.toJSON === 'function' ? value.toJSON() : value;
  const entries = Object.entries(plain).map(([name, field]) => [name, shown(field)]);
  return Object.fromEntries(entries);
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
