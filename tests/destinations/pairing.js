// The id that the gateway gives an event, so that a browser's own report of it can bear the same.
async function eventId({ source, account = "", key, name, index = 0 }) {
  const namespace = "ecf990a9778b5487a145247f419674a4".match(/../g).map((pair) => parseInt(pair, 16));
  const text = new TextEncoder().encode([source, account, key, name, index].join("|"));
  const digest = await crypto.subtle.digest("SHA-1", Uint8Array.of(...namespace, ...text));
  const id = new Uint8Array(digest).slice(0, 16);
  id[6] = (id[6] & 0x0f) | 0x50; // UUID version 5
  id[8] = (id[8] & 0x3f) | 0x80;
  const hex = Array.from(id, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
