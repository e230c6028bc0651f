// Asks the model: about golden samples, a picture, the webcam's pictures, a text, or numbers; and counts right answers.
const SAMPLE_MS = 100; // from one sample of the steady stream to the next
const FRAME_MS = 120;

const asking = {
  samples: [],
  right: 0,
  asked: 0,
  busy: -Infinity, // when this page asked last, of performance.now()
  steady: null,
  camera: null,

  async start(model) {
    this.stop();
    this.model = model;
    this.right = this.asked = 0;
    say($("tally"), "–");
    say($("ask-note"), "");
    $("file-label").hidden = $("webcam").hidden = !model.takes_images;
    $("numbers").hidden = model.takes_images;
    $("numbers-text").value = model.takes_texts ? "" : JSON.stringify(nested(model.shape));
    say($("numbers-label"), model.takes_texts ? "A text" : "Numbers of one input, as JSON");
    $("samples").replaceChildren();
    this.samples = await (await request(`console/samples?${query({ model: model.model })}`)).json();
    $("samples").replaceChildren(...this.samples.map((sample, number) => sampleButton(sample, number)));
  },

  stop() {
    for (const name of ["steady", "camera"]) this[name]?.();
    this.steady = this.camera = null;
    $("steady").ariaPressed = $("webcam").ariaPressed = "false";
  },

  // Asks about a sample, or about the body of a request, and shows the answer. Returns the answer.
  async ask(parameters, options, picture, force = true) {
    this.busy = performance.now();
    const path = `console/predict?${query({ model: this.model.model, ...parameters })}`;
    const answer = await (await request(path, { method: "POST", ...options })).json();
    if (force || votes.free) showRequest(answer, picture);
    return answer;
  },

  async sample(number, force = true) {
    const sample = this.samples[number];
    const answer = await this.ask({ sample: number }, {}, pixels(sample), force);
    this.asked += 1;
    this.right += (answer.label ?? "") === answer.expected;
    say($("tally"), `${count(this.right)} of ${count(this.asked)}`);
    $("tally").dataset.level = this.right === this.asked ? "good" : "bad";
  },

  async picture(blob, force = true) {
    const drawn = await createImageBitmap(blob);
    return this.ask({}, { body: blob, headers: { "content-type": blob.type || "image/*" } }, drawn, force);
  },
};

function nested(shape) {
  return shape.length ? Array.from({ length: Math.min(Math.abs(shape[0]), 64) }, () => nested(shape.slice(1))) : 0;
}

function pixels(sample) {
  if (!sample.rgba) return null;
  const bytes = Uint8ClampedArray.from(atob(sample.rgba), (character) => character.charCodeAt(0));
  return new ImageData(bytes, sample.width, sample.height);
}

function drawPicture(canvas, picture) {
  canvas.hidden = !picture;
  if (!picture) return;
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  if (picture instanceof ImageData) context.putImageData(picture, 0, 0);
  else context.drawImage(picture, 0, 0);
  canvas.classList.toggle("tiny", picture.width < 96);
}

function sampleButton(sample, number) {
  const button = make("button", { type: "button", className: "sample", title: sample.label });
  button.ariaLabel = `Ask about sample ${number + 1}, ${sample.label}`;
  const canvas = make("canvas", { ariaHidden: "true" });
  drawPicture(canvas, pixels(sample));
  button.append(sample.rgba ? canvas : sample.label);
  button.addEventListener("click", () => attempt(() => asking.sample(number)));
  return button;
}

// Runs what may fail, and says so.
async function attempt(work) {
  try {
    await work();
    say($("ask-note"), "");
    return true;
  } catch (error) {
    say($("ask-note"), error.message);
    return false;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A loop that a button starts and stops. `begin` returns the work of one round and what to do at the end.
function loops(button, name, begin, everyMs) {
  button.addEventListener("click", async () => {
    if (asking[name]) {
      asking[name]();
      return;
    }
    let going = true;
    let round = null;
    let end = () => {};
    button.ariaPressed = "true";
    asking[name] = () => {
      going = false;
      asking[name] = null;
      button.ariaPressed = "false";
    };
    const stop = asking[name];
    if (await attempt(async () => ([round, end] = await begin()))) {
      while (going) {
        const [, fine] = await Promise.all([pause(everyMs), attempt(round)]);
        if (!fine) await pause(1000);
      }
    } else if (going) {
      stop();
    }
    end();
  });
}

function startAsking() {
  let next = 0;
  loops($("steady"), "steady", async () => [() => asking.sample(next++ % asking.samples.length, false), () => {}], SAMPLE_MS);
  loops($("webcam"), "camera", openCamera, FRAME_MS);
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    if (file) attempt(() => asking.picture(file));
    $("file").value = "";
  });
  $("numbers").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => {
      const given = $("numbers-text").value;
      const body = JSON.stringify(asking.model.takes_texts ? { text: given } : { inputs: JSON.parse(given) });
      return asking.ask({}, { body, headers: { "content-type": "application/json" } }, null);
    });
  });
  const over = (shown) => (event) => {
    if (!asking.model?.takes_images) return;
    event.preventDefault();
    $("drop").hidden = !shown;
  };
  addEventListener("dragover", over(true));
  addEventListener("dragleave", over(false));
  addEventListener("drop", (event) => {
    over(false)(event);
    const [file] = event.dataTransfer.files;
    if (file && asking.model?.takes_images) attempt(() => asking.picture(file));
  });
}

async function openCamera() {
  if (!navigator.mediaDevices) throw new Error("the browser gives no webcam to this page: open it over https or on localhost");
  const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  const video = make("video", { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  const round = async () => {
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
    await asking.picture(blob, false);
  };
  return [round, () => stream.getTracks().forEach((track) => track.stop())];
}
