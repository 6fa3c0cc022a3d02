// What saves clicks: copy buttons, the live tail, and the way from a mistake to its line. Every page works without it.
"use strict";

function prepare(place) {
  for (const button of place.querySelectorAll("button.copy")) {
    button.hidden = !navigator.clipboard; // only there over HTTPS, or on this machine
  }
}

async function copy(button) {
  const label = button.textContent;
  await navigator.clipboard.writeText(button.dataset.copy);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}

function select(line) {
  const text = document.getElementById("mapping");
  const lines = text.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
  text.focus();
  text.setSelectionRange(start, start + (lines[line - 1] ?? "").length);
  text.scrollTop = (line - 4) * text.scrollHeight / lines.length;
}

function follow(rows) {
  const live = document.getElementById("live");
  const source = new EventSource(rows.dataset.tail);
  source.addEventListener("alive", () => {
    live.hidden = false;
    live.className = "state live";
    live.textContent = "live";
  });
  source.addEventListener("error", () => {
    live.className = "state off";
    live.textContent = source.readyState === EventSource.CLOSED ? "not live" : "reconnecting";
    live.hidden = false;
  });
  source.addEventListener("webhook", (event) => {
    const parsed = document.createElement("template");
    parsed.innerHTML = event.data; // a template of the gateway's, escaped there
    const row = parsed.content.firstElementChild;
    const known = rows.querySelector(`[data-webhook="${row.dataset.webhook}"]`);
    if (known) {
      if (known.cells[4].textContent.replace(/\s+/g, " ") === row.cells[4].textContent.replace(/\s+/g, " ")) return;
      known.replaceWith(row);
    } else {
      rows.prepend(row);
    }
    while (rows.rows.length > Number(rows.dataset.rows)) rows.lastElementChild.remove();
    document.getElementById("none-yet")?.remove();
  });
  addEventListener("pagehide", () => source.close());
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (button) copy(button);
  const line = event.target.closest("a[data-line]");
  if (line) {
    event.preventDefault();
    select(Number(line.dataset.line));
  }
});

document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-submit-on-change]");
  if (!form) return;
  if (event.target.name === "source") form.elements.sample.disabled = true; // the samples of another source are others
  form.submit();
});

function choosing(all) {
  const boxes = () => document.querySelectorAll('input[name="place"]');
  all.hidden = false;
  all.addEventListener("change", () => {
    for (const each of boxes()) each.checked = all.checked;
  });
}

prepare(document);
const all = document.getElementById("choose-all");
if (all) choosing(all);
document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
const rows = document.getElementById("tail");
if (rows) follow(rows);
