// Browsers start no workers for pages that are read from a folder. There, the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class {
    onmessage = null;
    onmessageerror = null;
    onerror = null;
    #frame = document.body.appendChild(Object.assign(document.createElement("iframe"), { hidden: true }));
    #started;

    constructor(url) {
      const inside = this.#frame.contentWindow;
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data }));
      const script = inside.document.createElement("script");
      this.#started = new Promise((resolve) => script.addEventListener("load", () => resolve(inside)));
      script.addEventListener("error", (event) => this.onerror?.(event));
      script.src = new URL(url, document.baseURI);
      inside.document.body.append(script);
    }

    postMessage(data) {
      this.#started.then((inside) => inside.onmessage?.({ data }));
    }

    terminate() {
      this.#frame.remove();
    }
  };
}
