// As many as `maxBody` bytes are enough for, as JPEG.
const MAX_SENT_PIXELS = 4e6

// The server's answer for a picture file, or for the canvas.
async function recognize(source) {
  const body = source === canvas ? await new Promise(done => canvas.toBlob(done)) : await smallEnough(source)
  if (!body) return { error: `The picture has more than ${MAX_BODY / 2 ** 20} MiB; choose a smaller one.` }
  try {
    const response = await fetch("/predict?seen=1", { method: "POST", body })
    return { ...await response.json(), wait: response.headers.get("Retry-After") }
  } catch {
    return { error: "No answer: is emnist-dali serve still running?" }
  }
}

// A photograph of more bytes than the server takes is sent smaller; null if the browser cannot decode it.
async function smallEnough(file) {
  if (file.size <= MAX_BODY) return file
  try {
    return await (await drawn(file, MAX_SENT_PIXELS)).canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 })
  } catch {
    return null
  }
}
