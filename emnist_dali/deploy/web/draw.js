// The page: a drawing or a picture, and what `recognize` of the next script says about it.
const find = id => document.getElementById(id)
const canvas = find("canvas"), paper = canvas.getContext("2d", { willReadFrequently: true })
// Measured: a glyph of 0.6 of the canvas then has as much ink as the median EMNIST image of its class.
const PEN = canvas.width / 12
const MAX_STEPS = 200 // that Undo takes back after a Clear
const HINT = find("hint").textContent
// Strokes, pictures as { file, preview }, and null for each Clear; what follows the last picture or null is shown.
let steps = []
let drawing = false, changed = false, recognizing = false

function shownStrokes() {
  return steps.slice(steps.findLastIndex(step => !(step instanceof Path2D)) + 1)
}

function shownPicture() {
  return steps.at(-1)?.file && steps.at(-1)
}

function paint() {
  const picture = shownPicture()
  canvas.classList.toggle("picture", Boolean(picture))
  paper.fillStyle = "white"
  paper.fillRect(0, 0, canvas.width, canvas.height)
  if (picture?.preview) paintPreview(picture.preview)
  paper.lineWidth = PEN
  paper.lineCap = paper.lineJoin = "round"
  for (const stroke of shownStrokes()) paper.stroke(stroke)
  find("hint").textContent = picture && !picture.preview ? picture.file.name : HINT
  find("hint").hidden = Boolean(steps.at(-1) && (!picture || picture.preview))
  find("undo").disabled = !steps.length
}

function paintPreview(preview) {
  const scale = Math.min(canvas.width / preview.width, canvas.height / preview.height)
  const [width, height] = [scale * preview.width, scale * preview.height]
  paper.drawImage(preview, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height)
}

function point(event) {
  const box = canvas.getBoundingClientRect()
  const scale = canvas.width / box.width
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]
}

canvas.addEventListener("pointerdown", event => {
  if (!event.isPrimary || event.button !== 0) return
  canvas.setPointerCapture(event.pointerId)
  drawing = true
  const [x, y] = point(event), stroke = new Path2D()
  stroke.moveTo(x, y)
  stroke.lineTo(x + 0.01, y) // draws a dot if the pointer does not move
  steps.push(stroke)
  update()
})

canvas.addEventListener("pointermove", event => {
  if (!drawing || !event.isPrimary) return
  for (const part of event.getCoalescedEvents?.() ?? [event]) steps.at(-1).lineTo(...point(part))
  update()
})

for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, event => { if (event.isPrimary) drawing = false })
}

find("clear").addEventListener("click", clear)
find("undo").addEventListener("click", undo)
find("choose").addEventListener("click", () => find("file").click())
find("file").addEventListener("change", ({ target }) => {
  choose(target.files)
  target.value = "" // so that the same file can be chosen again
})
document.addEventListener("keydown", event => {
  if (event.key === "Escape") clear()
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) undo()
})
document.addEventListener("paste", ({ clipboardData }) => choose(clipboardData.files))
document.addEventListener("dragover", event => event.preventDefault())
document.addEventListener("drop", event => {
  event.preventDefault()
  choose(event.dataTransfer.files)
})

function clear() {
  if (steps.at(-1)) steps = [...steps, null].slice(-MAX_STEPS)
  drawing = false
  update()
}

function undo() {
  steps.pop()
  drawing = false
  update()
}

async function choose([file]) {
  if (!file) return
  const preview = await previewOf(file)
  drawing = false
  steps.push({ file, preview })
  update()
}

// Small, since a photograph takes 50 MB; null if the browser cannot decode it.
async function previewOf(file) {
  try {
    return (await drawn(file, canvas.width ** 2)).canvas
  } catch {
    return null
  }
}

// The 2D context of a picture file or the canvas, turned as its EXIF says, of at most so many pixels. The colours are
// those in the file, without its profile, as in Python.
async function drawn(source, maxPixels) {
  const bitmap = await createImageBitmap(source, { colorSpaceConversion: "none" })
  const scale = Math.min(1, Math.sqrt(maxPixels / (bitmap.width * bitmap.height)))
  const [width, height] = [bitmap.width, bitmap.height].map(side => Math.max(1, Math.floor(scale * side)))
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true })
  context.imageSmoothingQuality = "high"
  context.drawImage(bitmap, 0, 0, width, height)
  bitmap.close()
  return context
}

function update() {
  paint()
  if (!steps.at(-1)) show({})
  changed = true
  if (!recognizing) recognizeAll()
}

// One at a time; the next one covers what is drawn in the meantime. A busy server is asked again.
async function recognizeAll() {
  recognizing = true
  while (changed) {
    changed = false
    const asked = steps.at(-1)
    if (!asked) continue
    const { wait, ...answer } = await recognize(shownPicture()?.file ?? canvas)
      .catch(error => ({ error: `No answer (${error.message}).` })) // the next one is recognized all the same
    if (steps.at(-1) === asked) show(answer)
    if (wait) {
      await new Promise(done => setTimeout(done, 1000 * wait))
      changed = true
    }
  }
  recognizing = false
}

function show({ character = "", top = [], seen = "", error = "", warning }) {
  find("answer").textContent = character
  find("answer").className = character.length > 2 ? "word" : ""
  find("error").textContent = error
  find("warning").textContent = warning ? `Perhaps not: ${warning}.` : ""
  find("seen").hidden = !seen
  if (seen) find("seen").firstChild.src = seen
  ;[...find("top").children].forEach((row, i) => {
    const { character = "", probability = 0 } = top[i] ?? {}
    const [name, bar, share] = row.children
    name.textContent = name.title = character
    bar.style.setProperty("--share", `${100 * probability}%`)
    share.textContent = character && `${(100 * probability).toFixed(1)} %`
  })
}

paint()
show({})
