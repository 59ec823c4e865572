"use strict";

// A report is "idle", "mine" (this window exports it), "done", "stopped" (cancelled, or the server did not answer),
// "elsewhere" (another window exports it), or "refused" (it does, and the user clicked here).
class Report {
  constructor(section) {
    this.section = section;
    this.button = section.querySelector("button");
    this.bar = section.querySelector(".bar");
    this.status = section.querySelector(".status");
    this.button.addEventListener("click", () => (this.state === "mine" ? this.request.abort() : this.export()));
    this.look();
    setInterval(() => this.look(), 1000);
  }

  get state() {
    return this.section.dataset.state;
  }

  show(state, ...content) {
    this.section.dataset.state = state;
    this.button.textContent = state === "mine" ? "Cancel" : "Export";
    this.status.replaceChildren(...content);
  }

  showFile(state, file) {
    const link = Object.assign(document.createElement("a"), { href: file?.url, textContent: file?.text });
    this.show(state, ...(file ? [state === "done" ? "Done: " : "Last: ", link] : []));
  }

  progress(done, of) {
    const percent = Math.round((100 * done) / of);
    this.bar.setAttribute("aria-valuenow", percent);
    this.bar.firstElementChild.style.width = `${percent}%`;
    this.show("mine", `${percent} % · ${done.toLocaleString("en")} of ${of.toLocaleString("en")} rows`);
  }

  async export() {
    this.request = new AbortController();
    this.progress(0, 1);
    this.show("mine", "Starting …");
    try {
      const answer = await fetch(this.section.dataset.url, { method: "POST", signal: this.request.signal });
      if (answer.ok) {
        for await (const line of lines(answer.body)) this.hear(line);
      } else {
        this.show("refused", (await answer.json()).busy);
      }
    } catch (error) {
      this.show("stopped", error.name === "AbortError" ? "Cancelled." : "The server does not answer.");
    }
  }

  hear({ done, of, file }) {
    if (file) this.showFile("done", file);
    else this.progress(done, of);
  }

  // What the server says is news, unless it is about this window's own export, which runs or has just been stopped.
  get listens() {
    return !["mine", "stopped"].includes(this.state);
  }

  async look() {
    if (!this.listens) return;
    const answer = await fetch(this.section.dataset.url).catch(() => null);
    if (!answer?.ok || !this.listens) return;
    const { running, file } = await answer.json();
    if (!this.listens) return;
    if (!running && this.state !== "done") this.showFile("idle", file);
    if (running && this.state !== "refused") this.show("elsewhere", "Running in another window");
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const found = (rest + value).split("\n");
    rest = found.pop();
    for (const line of found) yield JSON.parse(line);
  }
}

document.querySelectorAll(".report").forEach((section) => new Report(section));
