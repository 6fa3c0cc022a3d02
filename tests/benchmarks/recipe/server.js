// What collectors document for Node: check the signature, post the event, answer without waiting for it.
// `node server.js PORT`; STRIPE_WEBHOOK_SECRET is the secret, COLLECTORS are the URLs to post to, comma-separated.
import express from "express";
import Stripe from "stripe";

const stripe = new Stripe("sk_test_of_no_account");
const collectors = (process.env.COLLECTORS ?? "").split(",").filter(Boolean);
const app = express();
let underWay = 0;

function track(event) {
  const session = event.data.object;
  const properties = { order_id: session.metadata.order_id, value: session.amount_total / 100, currency: session.currency };
  // Both shapes in which the benchmarks' collectors read an order.
  const data = { ...properties, anonymous_id: session.client_reference_id, properties };
  const body = JSON.stringify({ event_name: "purchase", timestamp: event.created, context: {}, data });
  const headers = { "Content-Type": "application/json", "Idempotency-Key": event.id };
  for (const collector of collectors) {
    underWay += 1;
    fetch(collector, { method: "POST", headers, body })
      .then((answer) => answer.arrayBuffer())
      .catch((error) => console.error("not delivered:", error.message))
      .finally(() => { underWay -= 1; });
  }
}

// The benchmarks' senders do not all name a type.
app.post("/webhooks/stripe", express.raw({ type: () => true, limit: "2mb" }), (request, response) => {
  let event;
  try {
    const signature = request.get("Stripe-Signature");
    event = stripe.webhooks.constructEvent(request.body, signature, process.env.STRIPE_WEBHOOK_SECRET);
  } catch (error) {
    return response.status(400).json({ error: error.message });
  }
  if (event.type === "checkout.session.completed") track(event);
  response.json({ received: true });
});
app.get(["/livez", "/readyz"], (request, response) => response.json({ status: "ok" }));
app.get("/under-way", (request, response) => response.json(underWay));
app.listen(Number(process.argv[2]), "127.0.0.1");
