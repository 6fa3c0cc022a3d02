// Starts the recipe as tests/replicas/nursery.py forks gateways: each line of stdin is `serve --port PORT LOG`, the
// answer is the process id. They end with stdin.
import { spawn } from "node:child_process";
import { openSync } from "node:fs";
import { createInterface } from "node:readline";

const born = [];
const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const [, , port, log] = line.split(" ");
  const file = openSync(log, "a");
  const child = spawn(process.execPath, ["server.js", port], { stdio: ["ignore", file, file] });
  born.push(child);
  console.log(child.pid);
});
lines.on("close", () => born.forEach((child) => child.kill("SIGKILL")));
