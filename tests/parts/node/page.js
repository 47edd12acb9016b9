// The emulator's page in a real Chromium. Standard input: the plan of `tests/it/page.rs`, one JSON object.
// Standard output: one JSON object of what the browser showed. Screenshots go to the plan's folder.
'use strict';

const path = require('node:path');
const { source: axe } = require('axe-core');
const { chromium } = require('playwright-core');

// Longest wait for the page to show something.
const LIMIT_MS = 30000;
const DESKTOP = { width: 1280, height: 900 };
const PHONE = { width: 390, height: 844 };
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

async function main() {
  const plan = JSON.parse(await text(process.stdin));
  const browser = await chromium.launch({
    executablePath: plan.chromium,
    headless: true,
    args: FLAGS,
  });
  try {
    const said = { complaints: [] };
    const page = await open(browser, { viewport: DESKTOP }, said);
    await page.goto(`${plan.baseUrl}/emulator/`);
    await sendMessages(page, plan, said);
    await placeCall(page, plan, said);
    await look(page, plan, said);
    await readOnEveryScreen(browser, plan, said);
    await advanceAndClose(page, plan, said);
    process.stdout.write(`${JSON.stringify(said)}\n`);
  } finally {
    await browser.close();
  }
}

// A page of a profile of its own that keeps what the browser complains about.
async function open(browser, options, said) {
  const context = await browser.newContext({ ...options, deviceScaleFactor: 1 });
  const page = await context.newPage();
  page.setDefaultTimeout(LIMIT_MS);
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) {
      said.complaints.push(message.text());
    }
  });
  page.on('pageerror', (error) => said.complaints.push(String(error)));
  page.on('request', (request) => {
    if (!request.url().startsWith('http://127.0.0.1:')) {
      said.complaints.push(`asks for ${request.url()}`);
    }
  });
  return page;
}

// Each message is seen where the form leads to, exactly as it was written.
async function sendMessages(page, plan, said) {
  said.messages = [];
  for (const message of plan.messages) {
    await page.goto(`${plan.baseUrl}/emulator/`);
    const form = page.locator('form[action$="/forms/message"]');
    await form.getByLabel('Channel').selectOption('SMS');
    await form.getByLabel('From', { exact: true }).fill(plan.customer);
    await form.getByLabel('To', { exact: true }).fill(plan.number);
    await form.getByLabel('Text').fill(message);
    await form.getByRole('button', { name: 'Send message' }).click();
    await page.locator('.said').last().waitFor();
    said.messages.push(await page.locator('.said').last().innerText());
  }
  said.conversation = new URL(page.url()).pathname.split('/').pop();
  said.scriptRan = await page.evaluate(() => window.marked !== undefined);
  said.note = await page.getByRole('status').innerText();
  await page.getByText('callback').first().waitFor();
}

async function placeCall(page, plan, said) {
  await page.goto(`${plan.baseUrl}/emulator/`);
  const form = page.locator('form[action$="/forms/call"]');
  await form.getByLabel('From', { exact: true }).fill(plan.customer);
  await form.getByLabel('To', { exact: true }).fill(plan.number);
  await form.getByLabel('What is said').fill(plan.utterances.join('\n'));
  await form.getByRole('button', { name: 'Place call' }).click();
  await page.locator('.said').last().waitFor();
  said.utterances = await page.locator('.said').allInnerTexts();
  await page.screenshot({ path: shot(plan, 'call'), fullPage: true });
}

// What the front page lists, and one conversation's timeline.
async function look(page, plan, said) {
  await page.goto(`${plan.baseUrl}/emulator/`);
  const list = page.getByRole('region', { name: 'Conversations, scrollable' });
  said.rows = await list.locator('tbody tr').count();
  said.newest = await list.locator('tbody tr .id').first().innerText();
  said.bill = await page.getByRole('region', { name: /Calls on the bill/ }).innerText();
  await page.getByRole('link', { name: 'Older' }).click();
  said.rowsOfTheSecondPage = await list.locator('tbody tr').count();
  await page.getByRole('link', { name: 'Newer' }).click();
  said.newestAgain = await list.locator('tbody tr .id').first().innerText();
  await page.goto(`${plan.baseUrl}/emulator/conversations/${said.conversation}`);
  said.events = await page.locator('ol.timeline li strong').allInnerTexts();
}

// Wide and narrow, light and dark: nothing sticks out, and axe-core finds nothing to mend.
async function readOnEveryScreen(browser, plan, said) {
  said.screens = {};
  const pages = { front: '', conversation: `conversations/${said.conversation}` };
  for (const [screen, viewport] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
    for (const colorScheme of ['light', 'dark']) {
      // The checker is a script, which the page's own policy would not let in.
      const options = { viewport, colorScheme, bypassCSP: true };
      const page = await open(browser, options, said);
      for (const [name, address] of Object.entries(pages)) {
        await page.goto(`${plan.baseUrl}/emulator/${address}`);
        await page.screenshot({ path: shot(plan, `${name}-${screen}-${colorScheme}`), fullPage: true });
        await page.addScriptTag({ content: axe });
        const found = await page.evaluate(() => window.axe.run());
        said.screens[`${name} ${screen} ${colorScheme}`] = {
          width: await page.evaluate(() => document.documentElement.scrollWidth),
          ground: await page.evaluate(() => getComputedStyle(document.body).backgroundColor),
          violations: found.violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`),
        };
      }
      await page.context().close();
    }
  }
}

async function advanceAndClose(page, plan, said) {
  await page.goto(`${plan.baseUrl}/emulator/`);
  const form = page.locator('form[action$="/forms/clock"]');
  await form.getByLabel('By', { exact: true }).fill(String(plan.minutesToInactive));
  await form.getByLabel('Unit').selectOption('60');
  await form.getByRole('button', { name: 'Advance clock' }).click();
  await page.goto(`${plan.baseUrl}/emulator/conversations/${said.conversation}`);
  said.statusAfterTime = await page.locator('main .badge').first().innerText();
  await page.getByRole('button', { name: 'Close conversation' }).click();
  await page.getByText('CLOSED').first().waitFor();
  said.statusAfterClose = await page.locator('main .badge').first().innerText();
  said.canCloseAgain = await page.getByRole('button', { name: 'Close conversation' }).count();
  await page.screenshot({ path: shot(plan, 'closed'), fullPage: true });
}

function shot(plan, name) {
  return path.join(plan.artifacts, `emulator-${name}.png`);
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
