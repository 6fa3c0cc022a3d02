// A site as its owner would write it: sessions, a login, and the router of the README.
import express from "express";
import session from "express-session";
import { linkToken, router } from "./backend.js";

const site = express();
site.use(session({ secret: "of the tests", resave: false, saveUninitialized: false }));
site.post("/login/:user", (request, response) => {
  request.session.userId = request.params.user;
  response.sendStatus(204);
});
site.get("/token", async (request, response) => response.send(await linkToken(request.session.userId)));
site.use(router);
const server = site.listen(0, "127.0.0.1", () => console.log(server.address().port));

// The tests hold its standard input: it ends when they do, however they end.
process.stdin.resume().on("end", () => process.exit());
