// The page asks the API, as any other program does, once a second; what happens to the chosen instance is a stream.

const $ = (selector) => document.querySelector(selector);
const remembered = "gateway-key"; // for as long as the tab is open
let chosen = "";
let instances = [];
let looking = new AbortController(); // at the chosen instance
let pairing = new AbortController();

// call asks the API; what is no success is an Error with the problem's own words. A key is asked for when it is needed.
async function call(method, path, body, options = {}) {
  for (;;) {
    const headers = { ...options.headers };
    const key = sessionStorage.getItem(remembered);
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await fetch(path, { method, headers, signal: options.signal, body: body === undefined ? undefined : JSON.stringify(body) });
    if (answer.status === 401) {
      await askKey(key);
      continue;
    }
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({ title: answer.statusText }));
      throw new Error([problem.title, problem.detail].filter(Boolean).join(" "));
    }
    return answer;
  }
}

let asking = null;
function askKey(refused) {
  if (sessionStorage.getItem(remembered) !== refused) return Promise.resolve(); // somebody has entered another one meanwhile
  asking ??= new Promise((resolve) => {
    const dialog = $("#ask-key");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(remembered, $("#key").value);
      $("#key").value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// stream reads server-sent events until they end.
async function stream(path, signal, each) {
  const answer = await call("GET", path, undefined, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) each(JSON.parse(data.slice(6)));
    }
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const make = (tag, text, className) => Object.assign(document.createElement(tag), { textContent: text ?? "", className: className ?? "" });
const words = (state) => state.replace("_", " ");

function ago(time) {
  if (!time) return "";
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : new Date(time).toLocaleString();
}

function trouble(error) {
  $("#trouble").hidden = !error;
  $("#trouble").textContent = error ? error.message : "";
}

// attempt does what a button says, and says what went wrong.
async function attempt(button, what) {
  const keeps = ["pair", "type"].includes(button.dataset.action); // as long as codes are shown, another one may be asked for
  button.disabled = !keeps;
  try {
    trouble();
    await what();
  } catch (error) {
    if (error.name !== "AbortError") trouble(error);
  }
  button.disabled = false;
  await refresh().catch(() => {});
}

async function refresh() {
  const [list, processes] = await Promise.all([
    call("GET", "/v1/instances").then((answer) => answer.json()),
    call("GET", "/v1/processes").then((answer) => answer.json()),
  ]);
  instances = list.instances;
  const sum = (of) => instances.reduce((total, i) => total + i[of], 0);
  $("#totals").textContent = `${instances.length} instances · ${sum("codes")} QR codes · ${sum("received")} received · ${sum("sent")} sent`;
  $("#processes").replaceChildren(...processes.processes.map((p) => make("li", `${p.name}: ${p.instances}`, p.alive ? "" : "dead")));
  const targets = processes.processes.filter((p) => p.alive).map((p) => p.name);
  if (targets.join() !== [...$("#target").options].map((o) => o.value).join()) {
    const before = $("#target").value;
    $("#target").replaceChildren(...targets.map((name) => new Option(name, name, false, name === before)));
  }
  showList();
  showFacts();
}

// showList keeps the buttons that are there, so that the focus stays where it is.
function showList() {
  const items = new Map([...$("#list").children].map((item) => [item.dataset.id, item]));
  for (const i of instances) {
    let item = items.get(i.id);
    items.delete(i.id);
    if (!item) {
      item = make("li");
      item.dataset.id = i.id;
      const button = make("button");
      button.type = "button";
      button.append(make("strong", i.id), make("span"), make("small"), make("small"));
      button.addEventListener("click", () => choose(i.id));
      item.append(button);
    }
    const [, state, owner, activity] = item.firstChild.children;
    state.textContent = words(i.state);
    state.className = `state ${i.state}`;
    owner.textContent = i.owner ?? "no owner";
    activity.textContent = `↓${i.received} ↑${i.sent} ${ago(i.active_at)}`;
    item.firstChild.setAttribute("aria-current", i.id === chosen);
    if ($("#list").children[instances.indexOf(i)] !== item) $("#list").insertBefore(item, $("#list").children[instances.indexOf(i)] ?? null);
  }
  for (const item of items.values()) item.remove();
}

function showFacts() {
  const i = instances.find((one) => one.id === chosen);
  if (chosen && !i) choose("");
  if (!i) return;
  const facts = { State: words(i.state), Why: i.detail, Number: i.jid?.split(/[:@]/)[0], Owner: i.owner, "Last activity": ago(i.active_at), "QR codes": i.codes };
  $("#facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== undefined && value !== "").flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
  for (const button of document.querySelectorAll("[data-action]")) {
    const links = ["pair", "type"].includes(button.dataset.action);
    button.hidden = button.dataset.action !== "delete" && links === Boolean(i.jid);
  }
  $("#phone").parentElement.hidden = Boolean(i.jid);
  $("#target").parentElement.hidden = !i.jid;
  $("#send").hidden = !i.jid;
}

// choose shows an instance, and what happens to it for as long as it is shown.
function choose(id) {
  if (id === chosen) return;
  chosen = id;
  looking.abort();
  pairing.abort();
  hideCodes();
  $("#instance").hidden = !id;
  $("#name").textContent = id;
  $("#log").replaceChildren();
  showList();
  showFacts();
  if (!id) return;
  $("#name").focus();
  looking = new AbortController();
  look(id, looking.signal);
}

// look follows an instance from process to process.
async function look(id, signal) {
  let last = "";
  while (!signal.aborted) {
    if (instances.find((one) => one.id === id)?.jid) {
      await stream(`/v1/instances/${encodeURIComponent(id)}/events`, signal, (event) => {
        if (event.time <= last) return; // the latest are told again
        last = event.time;
        log(event);
      }).catch(() => {});
    }
    await pause(500);
  }
}

function log({ time, type, data }) {
  const text = {
    message: () => `← ${data.name || data.from}: ${data.text || data.kind}`,
    sent: () => `→ ${data.to}: ${data.text || data.id}`,
    receipt: () => `✓ ${data.kind || "delivered"} to ${data.chat}`,
    undecryptable: () => `? a message from ${data.chat} could not be read yet`,
    state: () => `${words(data.state)} ${data.detail ?? ""}`,
  }[type];
  if (!text) return;
  const line = make("li");
  const when = make("time", new Date(time).toLocaleTimeString());
  when.dateTime = time;
  line.append(when, text());
  const list = $("#log");
  const atEnd = list.scrollTop + list.clientHeight > list.scrollHeight - 20;
  list.append(line);
  while (list.children.length > 500) list.firstChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function hideCodes() {
  $("#qr").hidden = true;
  $("#qr img").removeAttribute("src");
  $("#link-code").textContent = "";
}

async function pair(id, phone = "") {
  pairing.abort();
  pairing = new AbortController();
  const query = phone && `?phone=${encodeURIComponent(phone)}`;
  await stream(`/v1/instances/${encodeURIComponent(id)}/pair${query}`, pairing.signal, ({ type, data }) => {
    if (id !== chosen) return;
    if (type === "paired" || type === "failed") hideCodes();
    if (type === "code") {
      $("#link-code").textContent = `Code for ${data.phone}: ${data.code}`;
    } else if (type === "qr") {
      $("#qr img").src = `data:image/png;base64,${data.png}`;
      $("#qr").hidden = false;
    } else if (type === "failed") {
      trouble(new Error(`Not linked: ${data.detail}`));
    }
  });
}

function sure(question) {
  const dialog = $("#confirm");
  $("#question").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

const actions = {
  pair: (id) => pair(id),
  type: (id) => pair(id, $("#phone").value),
  restart: (id, path) => call("POST", `${path}/restart`),
  move: (id, path) => call("POST", `${path}/move`, { to: $("#target").value }),
  logout: async (id, path) => (await sure(`Log ${id} out? It has to be linked again.`)) && call("POST", `${path}/logout`),
  delete: async (id, path) => (await sure(`Delete ${id} with all its keys?`)) && call("DELETE", path),
};
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => attempt(button, () => actions[button.dataset.action](chosen, `/v1/instances/${encodeURIComponent(chosen)}`)));
}

$("#create").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(event.submitter, async () => {
    const id = $("#new-id").value;
    await call("POST", "/v1/instances", { id });
    $("#new-id").value = "";
    await refresh();
    choose(id);
    pair(id).catch(() => {});
  });
});

// A text has one key however often it is sent, so that a second click does not send it again after an answer that got lost.
const newDraft = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
let draft = newDraft();
$("#send").addEventListener("input", () => { draft = newDraft(); });
$("#send").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(event.submitter, async () => {
    $("#sent").textContent = "";
    const body = { to: $("#to").value, text: $("#text").value };
    await call("POST", `/v1/instances/${encodeURIComponent(chosen)}/messages`, body, { headers: { "Idempotency-Key": draft } });
    $("#text").value = "";
    draft = newDraft();
    $("#sent").textContent = "Sent.";
  });
});

for (const button of document.querySelectorAll("[data-export]")) {
  button.addEventListener("click", () => attempt(button, async () => {
    const answer = await call("GET", `/v1/export?format=${button.dataset.export}`);
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await answer.blob()), download: `instances.${button.dataset.export}` });
    link.click();
    URL.revokeObjectURL(link.href);
  }));
}

// Up and down go through the list.
$("#list").addEventListener("keydown", (event) => {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = step && event.target.closest("li")?.[step]?.firstChild;
  if (!next) return;
  event.preventDefault();
  next.focus();
});

for (;;) {
  if (!document.hidden) await refresh().then(() => $("#trouble").dataset.lost && (delete $("#trouble").dataset.lost, trouble())).catch((error) => {
    $("#trouble").dataset.lost = "yes";
    trouble(error);
  });
  await pause(1000);
}
