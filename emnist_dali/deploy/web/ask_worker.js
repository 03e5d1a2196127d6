// A canvas on a phone has at most so many.
const MAX_PIXELS = 2 ** 24

const started = startWorker()
started.catch(() => {}) // `recognize` says so

// The answer of the model, which runs in this browser, for a picture file or for the canvas.
async function recognize(source) {
  let pixels
  try {
    pixels = pixelsOf(source === canvas ? paper : await drawn(source, MAX_PIXELS))
  } catch {
    return { error: `This browser cannot read ${source.name}; choose a picture in JPEG or PNG.` }
  }
  try {
    const ask = await started
    const { image, warning, probabilities } = await ask(pixels)
    if (!image) {
      return { error: "The picture shows no character; choose a picture of one, dark on light or light on dark." }
    }
    const answer = toAnswer(probabilities, MODEL.classes, 5)
    return { ...answer, warning: warning ?? warningOf(probabilities, MODEL.typicality), seen: toDataUrl(image, MODEL.shape) }
  } catch (error) {
    return { error: `The model does not run in this browser (${error.message}).` }
  }
}

function pixelsOf(context) {
  return context.getImageData(0, 0, context.canvas.width, context.canvas.height)
}

// Resolves to a function that resolves to the worker's answer; one question at a time.
async function startWorker() {
  await Promise.all([loadScript("model.js"), loadScript("onnxruntime-web/runtime.js")])
  const scripts = [RUNTIME.script, "\n", find("worker").textContent]
  const worker = new Worker(URL.createObjectURL(new Blob(scripts, { type: "text/javascript" })))
  const ask = message => new Promise((done, fail) => {
    worker.onmessage = ({ data }) => data.error ? fail(Error(data.error)) : done(data)
    worker.onerror = ({ message }) => fail(Error(message))
    worker.postMessage(message)
  })
  await ask({ module: RUNTIME.module, wasm: RUNTIME.wasm, onnx: MODEL.onnx, shape: MODEL.shape })
  return ask
}

// As a script, which a page from file:// may load, and not by fetch, which it may not use.
function loadScript(source) {
  return new Promise((done, fail) => {
    const script = document.createElement("script")
    script.src = source
    script.onload = done
    script.onerror = () => fail(Error(`${source} cannot be loaded`))
    document.head.append(script)
  })
}

function toAnswer(probabilities, classes, top) {
  const likeliest = [...probabilities]
    .map((probability, i) => ({ character: classes[i], probability }))
    .sort((one, other) => other.probability - one.probability)
    .slice(0, top)
  return { ...likeliest[0], top: likeliest }
}

// That the picture looks like no character, or null; `typicality` is null for models without.
function warningOf(probabilities, typicality) {
  if (!typicality) return null
  const { means, whitening, farthest, least, warning } = typicality
  const logarithms = [...probabilities].map(probability => Math.log(Math.max(probability, least)))
  const mean = means[probabilities.indexOf(Math.max(...probabilities))]
  const away = logarithms.map((logarithm, i) => logarithm - mean[i])
  const distance = whitening.reduce((sum, row) => sum + row.reduce((dot, w, i) => dot + w * away[i], 0) ** 2, 0)
  return distance > farthest ? warning : null
}

function toDataUrl(image, [height, width]) {
  const shown = document.createElement("canvas")
  shown.width = width
  shown.height = height
  const pixels = new ImageData(width, height)
  image.forEach((level, i) => pixels.data.set([level, level, level, 255], 4 * i))
  shown.getContext("2d").putImageData(pixels, 0, 0)
  return shown.toDataURL()
}
