// Signs requests with Twilio's own code. Standard input: one JSON object a line, {token, url, body}, where
// `url` lacks the body's hash. Standard output: for each, {signature, url}, where `url` is the one that
// was signed and is to be requested.
'use strict';

const readline = require('node:readline');
const {
  getExpectedBodyHash,
  getExpectedTwilioSignature,
} = require('twilio/lib/webhooks/webhooks');

const lines = readline.createInterface({ input: process.stdin });

lines.on('line', (line) => {
  const { token, url, body } = JSON.parse(line);
  const hash = `bodySHA256=${getExpectedBodyHash(body)}`;
  const signed = `${url}${url.includes('?') ? '&' : '?'}${hash}`;
  const signature = getExpectedTwilioSignature(token, signed, {});
  console.log(JSON.stringify({ signature, url: signed }));
});
