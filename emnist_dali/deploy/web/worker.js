// Runs after onnxruntime-web's script and convert.js, away from the page, which keeps drawing. The first message has
// the rest of onnxruntime-web and the model, each other one is a picture as ImageData.
let session, size

onmessage = async ({ data }) => {
  try {
    postMessage(session ? await answer(data) : await start(data))
  } catch (error) {
    postMessage({ error: String(error.message ?? error) })
  }
}

async function start({ module, wasm, onnx, shape }) {
  size = [1, ...shape]
  ort.env.wasm.numThreads = 1 // several need headers that few static servers send
  ort.env.wasm.wasmPaths = {
    mjs: toUrl(module, "text/javascript"),
    wasm: toUrl(await unpacked(wasm), "application/wasm"),
  }
  session = await ort.InferenceSession.create(await unpacked(onnx), { executionProviders: ["wasm"] })
  return {}
}

async function answer(picture) {
  const glyph = findGlyph(picture)
  if (!glyph) return {}
  const images = new ort.Tensor("uint8", glyph.image, size)
  const { probabilities } = await session.run({ images })
  return { ...glyph, probabilities: probabilities.data }
}

function toUrl(content, type) {
  return URL.createObjectURL(new Blob([content], { type }))
}

// Base64 of gzip → bytes.
async function unpacked(text) {
  const compressed = Uint8Array.from(atob(text), character => character.charCodeAt(0))
  const content = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"))
  return new Uint8Array(await new Response(content).arrayBuffer())
}
