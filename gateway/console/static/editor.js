// The playground's editor: line numbers, mistakes at their lines, and completion of keys, functions and paths, by the
// schema of mappings and the webhook that is tried. Without it there is a plain text field, and all else works.
"use strict";

{
  const text = document.getElementById("mapping");
  const code = document.getElementById("code");
  const said = document.getElementById("said");
  const MOST = 12; // all of them fit, so that the list need not scroll
  const KEY = /^("[^"]*"|'[^']*'|[^\s"'#{[&*!|>%@`-][^#]*?):(?:\s|$)/;

  // line numbers, and mistakes

  const gutter = document.createElement("div");
  gutter.className = "lines";
  gutter.setAttribute("aria-hidden", "true");
  code.prepend(gutter);
  code.classList.add("numbered");

  function number() {
    const wanted = text.value.split("\n").length;
    while (gutter.childElementCount > wanted) gutter.lastElementChild.remove();
    while (gutter.childElementCount < wanted) gutter.append(document.createElement("i"));
  }

  function follow() {
    gutter.style.transform = `translateY(${-text.scrollTop}px)`;
  }

  function mark() {
    for (const each of gutter.querySelectorAll(".wrong")) each.className = "";
    const mistakes = [...document.querySelectorAll("#outcome a[data-line]")];
    for (const each of mistakes) {
      const line = gutter.children[Number(each.dataset.line) - 1];
      if (line) line.className = "wrong";
    }
    const first = mistakes[0];
    said.textContent = first
      ? `${mistakes.length} wrong. Line ${first.dataset.line}: ${first.dataset.message}`
      : document.querySelector("#outcome .notice")?.textContent ?? "";
  }

  // where the cursor stands: the keys above it, and what is written before it

  function anatomy(line) {
    const lead = /^\s*(?:-\s+)*/.exec(line)[0];
    const rest = line.slice(lead.length);
    return { lead: lead.length, dash: lead.indexOf("-"), rest, key: KEY.exec(rest)?.[1].replace(/^["']|["']$/g, "") };
  }

  function place() {
    const before = text.value.slice(0, text.selectionStart);
    const lines = before.split("\n");
    const { lead, dash, rest, key } = anatomy(lines.at(-1));
    const path = [];
    let need = lead;
    let equal = false;
    if (key !== undefined) path.unshift(key);
    if (dash >= 0) {
      path.unshift("[]");
      need = dash;
      equal = true;
    }
    let inText = false;
    for (let row = lines.length - 2; row >= 0 && (need > 0 || equal); row -= 1) {
      if (/^\s*(?:#|$)/.test(lines[row])) continue;
      const above = anatomy(lines[row]);
      if (above.key !== undefined && (above.lead < need || (equal && above.lead === need && above.dash < 0))) {
        path.unshift(above.key);
        inText ||= key === undefined && path.length === 1 && /:\s+[^\s#&]/.test(above.rest);
        need = above.lead;
        equal = false;
      }
      if (above.dash >= 0 && above.dash < need) {
        path.unshift("[]");
        need = above.dash;
        equal = true;
      }
    }
    const value = key === undefined ? null : rest.replace(KEY, "");
    return { path, value: inText ? rest : value, rest };
  }

  // what the schema says of that place

  let words = null;

  function forms(node, depth = 0) {
    if (!node || typeof node !== "object" || depth > 8) return [];
    const named = node.$ref ? [words.schema.$defs[node.$ref.split("/").pop()]] : [];
    const others = [...named, ...(node.anyOf ?? []), ...(node.oneOf ?? []), ...(node.allOf ?? [])];
    return [node, ...others.flatMap((each) => forms(each, depth + 1))];
  }

  function under(nodes, key) {
    return nodes.flatMap((node) => forms(node)).flatMap((form) => {
      if (key === "[]") return form.items ? [form.items] : [];
      if (form.properties && Object.hasOwn(form.properties, key)) return [form.properties[key]];
      return typeof form.additionalProperties === "object" ? [form.additionalProperties] : [];
    });
  }

  function keys(found) {
    return found.flatMap((form) => Object.entries(form.properties ?? {})).map(([name, about]) => (
      { name, about: forms(about).map((form) => form.description).find(Boolean) ?? "", insert: `${name}: ` }));
  }

  function values(found, path) {
    const offers = [];
    if (path.at(-1) === "on" || path.at(-2) === "on") offers.push(...words.types.map((name) => ({ name, about: "type", insert: name })));
    for (const form of found) {
      const several = [...(form.enum ?? []), ...(form.type?.includes?.("boolean") && !form.pattern ? [true, false] : [])];
      offers.push(...several.map((each) => ({ name: String(each), about: "", insert: String(each) })));
      offers.push(...(form.defaultSnippets ?? []).map((each) => ({ name: each.label, about: each.description, insert: String(each.body) })));
    }
    if (found.some((form) => form.pattern === "\\S")) {
      offers.push(...words.paths.map(([name, about]) => ({ name, about, insert: name })));
      offers.push(...words.functions.map(([name, about]) => ({ name: `${name}()`, about, insert: `${name}(` })));
    }
    return offers;
  }

  function offered(asked) {
    if (!words) return { token: "", offers: [] };
    const { path, value, rest } = place();
    const isValue = value !== null;
    const token = (isValue ? /[A-Za-z_$][\w$.[\]/*]*$/.exec(value)?.[0] : /^[\w$]*$/.exec(rest)?.[0]) ?? "";
    if (!isValue && rest !== token) return { token: "", offers: [] };
    if (!asked && !token) return { token, offers: [] };
    const nodes = path.reduce((above, key) => under(above, key), [words.schema]).flatMap((node) => forms(node));
    const all = isValue ? values(nodes, path) : [...keys(nodes), ...(path.at(-1) === "[]" ? values(nodes, path) : [])];
    const wanted = token.toLowerCase();
    const ranked = new Map();
    for (const each of all) {
      const name = each.name.toLowerCase();
      const last = name.split(".").at(-1);
      const rank = name.startsWith(wanted) ? 0 : last.startsWith(wanted) ? 1 : wanted.length > 1 && name.includes(wanted) ? 2 : 3;
      if (rank < 3 && each.insert !== token && !ranked.has(each.name)) ranked.set(each.name, { ...each, rank });
    }
    const offers = [...ranked.values()].sort((one, other) => one.rank - other.rank).slice(0, MOST);
    return { token, offers };
  }

  // the list

  const list = document.createElement("ul");
  list.id = "offers";
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Completions");
  list.hidden = true;
  code.append(list);
  text.setAttribute("aria-autocomplete", "list");
  text.setAttribute("aria-haspopup", "listbox");
  text.setAttribute("aria-controls", "offers");
  text.setAttribute("aria-describedby", "keys");
  document.getElementById("keys").hidden = false;

  let current = { token: "", offers: [] };
  let chosen = 0;

  function close() {
    list.hidden = true;
    text.removeAttribute("aria-activedescendant");
  }

  function choose(index) {
    chosen = (index + current.offers.length) % current.offers.length;
    [...list.children].forEach((each, place) => each.setAttribute("aria-selected", String(place === chosen)));
    text.setAttribute("aria-activedescendant", list.children[chosen].id);
  }

  function open(asked) {
    current = offered(asked);
    if (!current.offers.length) {
      close();
      return;
    }
    list.replaceChildren(...current.offers.map((each, index) => {
      const option = document.createElement("li");
      option.id = `offer-${index}`;
      option.setAttribute("role", "option");
      const name = document.createElement("span");
      name.textContent = each.name;
      const about = document.createElement("small");
      about.textContent = each.about;
      option.append(name, " ", about);
      return option;
    }));
    list.hidden = false;
    stand();
    choose(0);
    said.textContent = `${current.offers.length} completions`;
  }

  function stand() {
    const style = getComputedStyle(text);
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = style.font;
    const before = text.value.slice(0, text.selectionStart - current.token.length).split("\n");
    const line = parseFloat(style.lineHeight);
    const left = parseFloat(style.paddingLeft) + before.at(-1).length * pen.measureText("0").width - text.scrollLeft;
    const top = parseFloat(style.paddingTop) + before.length * line - text.scrollTop;
    list.style.left = `${Math.max(0, Math.min(left, text.clientWidth - list.offsetWidth))}px`;
    const fits = top + list.offsetHeight <= text.clientHeight || top - line < list.offsetHeight;
    list.style.top = `${fits ? top : top - line - list.offsetHeight}px`;
  }

  function take(index) {
    const { token, offers } = current;
    const end = text.selectionStart;
    text.focus();
    text.setSelectionRange(end - token.length, end);
    close();
    write(offers[index].insert);
  }

  let writing = false; // what is completed is not completed again

  function write(what) {
    writing = true;
    // The only way that leaves undo as it is; where it is gone, the field itself can do it.
    if (!document.execCommand("insertText", false, what)) {
      text.setRangeText(what, text.selectionStart, text.selectionEnd, "end");
      text.dispatchEvent(new Event("input", { bubbles: true }));
    }
    writing = false;
  }

  text.addEventListener("keydown", (event) => {
    const isOpen = !list.hidden;
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey;
    if (event.key === " " && event.ctrlKey) open(true);
    else if (isOpen && event.key === "ArrowDown") choose(chosen + 1);
    else if (isOpen && event.key === "ArrowUp") choose(chosen - 1);
    else if (isOpen && plain && (event.key === "Enter" || event.key === "Tab")) take(chosen);
    else if (isOpen && event.key === "Escape") close();
    else if (event.key === "Enter" && plain && !event.isComposing) {
      write("\n" + /^\s*/.exec(text.value.slice(0, text.selectionStart).split("\n").at(-1))[0]);
    } else return;
    event.preventDefault();
  });
  text.addEventListener("input", (event) => {
    number();
    if (writing) return;
    if (event.inputType === "insertText" && event.data?.trim()) open(false);
    else if (!list.hidden) open(false);
  });
  text.addEventListener("scroll", () => {
    follow();
    if (!list.hidden) stand();
  });
  text.addEventListener("blur", close);
  text.addEventListener("click", close);
  list.addEventListener("mousedown", (event) => {
    event.preventDefault(); // the field keeps the focus
    const option = event.target.closest("li");
    if (option) take([...list.children].indexOf(option));
  });
  new MutationObserver(mark).observe(document.getElementById("outcome"), { childList: true });

  number();
  mark();
  fetch(code.dataset.words).then((answer) => (answer.ok ? answer.json() : null)).then((found) => {
    words = found;
    if (words) code.dataset.ready = "yes";
  });
}
