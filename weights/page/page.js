// The page: it asks the library (worker.js) and draws what it answers.
"use strict"
const SIDE = 16, PIXELS = 128, CODES = 512, MOST = 8 // codes and pixels of a side; codes of the codebook; pictures side by side
const $ = id => document.getElementById(id)
const make = (tag, text = "", set = {}) => Object.assign(document.createElement(tag), { textContent: text }, set)
const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })))
const waiting = new Map() // id of a question -> { each, all, resolve }
const lanes = []
let questions = 0, colours = null, now = 0, playing = 0, resting = 0, run = 0, chosen = { lane: null, y: 0, x: 0 }, decisions = null

// Asks the library; each: called with every line of the answer. Resolves to all lines.
const ask = (question, each = () => {}) => new Promise(resolve => {
    waiting.set(++questions, { each, all: [], resolve })
    worker.postMessage({ ...question, id: questions })
})
worker.onmessage = ({ data }) => {
    const w = waiting.get(data.id)
    if (data.what.end) return waiting.delete(data.id), w.resolve(w.all)
    w.all.push(data), w.each(data.what)
}
worker.onerror = event => say("The library does not run in this browser: " + event.message, true)

function say(text, wrong = false) {
    $("status").textContent = text
    $("status").classList.toggle("wrong", wrong)
}
const short = x => x === 0 ? "0" : Math.abs(x) < 1e-4 ? x.toExponential(1) : String(+x.toPrecision(4))
const clamp = v => Math.max(0, Math.min(SIDE - 1, Math.floor(v)))

// ---- pictures ------------------------------------------------------------------------------------------------------------
const last = l => l.result ? l.result.passes - (l.result.labels ? 0 : 1) : l.told - 1 // stage two of coarse to fine is a pass more
const shownPass = l => Math.min(now, last(l))
const number = l => lanes.indexOf(l) + 1
const colour = code => `rgb(${colours.subarray(3 * code, 3 * code + 3).join()})`

// Colours from dark purple over green to yellow, those of the order map: at in 0 ... 1.
function ramp(at) {
    const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], i = Math.min(3, Math.floor(at * 4)), f = at * 4 - i
    return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * f))
}

function paintMap(l, which, share) {
    const context = l.at(`[data-map=${which}] canvas`).getContext("2d"), image = context.createImageData(SIDE, SIDE)
    l.places.forEach((p, i) => p.pass <= now && image.data.set([...ramp(share(p)), 255], 4 * i))
    context.putImageData(image, 0, 0)
}

function paint(l) {
    const context = l.at("[data-map=picture] canvas").getContext("2d"), pass = shownPass(l), frame = l.frames.get(pass)
    context.clearRect(0, 0, PIXELS, PIXELS)
    if (frame && !playing) context.putImageData(frame, 0, 0)
    else
        l.places.forEach((p, i) => {
            if (p.pass > now || !colours) return
            context.fillStyle = colour(pass === last(l) ? p.final : p.shown)
            context.fillRect(i % SIDE * 8, Math.floor(i / SIDE) * 8, 8, 8)
        })
    const scales = l.places.map(p => p.scale).filter(s => s >= 0), least = Math.min(...scales), most = Math.max(...scales)
    paintMap(l, "pass", p => p.pass / Math.max(1, l.result ? l.result.passes - 1 : SIDE * SIDE - 1))
    paintMap(l, "scale", p => most > least ? (p.scale - least) / (most - least) : .5)
    l.at(".passes").textContent = "pass of each token" + (l.result ? `, 0 to ${l.result.passes - 1}` : "")
    if (scales.length) l.at(".scales").textContent = most === 0 ? "no guidance" : `guidance scale ${short(least)}${most > least ? " to " + short(most) : ""}`
    for (const pick of l.el.querySelectorAll(".pick")) {
        pick.hidden = chosen.lane !== l
        Object.assign(pick.style, { left: chosen.x * 6.25 + "%", top: chosen.y * 6.25 + "%" })
    }
}

// The decoder's pixels after a pass; their bytes.
async function frame(l, pass) {
    const { frames } = l, [{ pixels }] = await ask({ ask: "frame", lane: l.id, pass, size: 3 * PIXELS * PIXELS }), image = new ImageData(PIXELS, PIXELS)
    for (let i = 0; pixels && i < PIXELS * PIXELS; i++) image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i)
    frames.set(pass, image), paint(l)
    return pixels
}

function show(pass) {
    const most = Math.max(0, ...lanes.map(last))
    now = Math.max(0, Math.min(pass, most))
    $("pass").max = most, $("pass").value = now, $("pass").disabled = $("play").disabled = most === 0
    $("passes").textContent = `Pass ${now} of ${most}`
    lanes.forEach(paint), clearTimeout(resting)
    resting = setTimeout(async () => { // the slider rests
        for (const l of lanes) if (!playing && l.result && !l.frames.has(shownPass(l))) await frame(l, shownPass(l))
    }, 150)
}

function play(on) {
    clearInterval(playing)
    playing = on ? setInterval(() => now >= +$("pass").max ? play(false) : show(now + 1), 1000 / 30) : 0
    $("play").textContent = on ? "Pause" : "Play"
    show(on && now >= +$("pass").max ? 0 : now)
}

// ---- drawing -------------------------------------------------------------------------------------------------------------
function flagsOf(l) {
    const model = l.at(".model").value, order = l.at(".order").value.replace("W", l.at(".width").value.trim())
    const flags = ["--prompt", $("caption").value, "--seed", $("seed").value.trim(), "--decode", order]
    if (model !== "s2") flags.push("--model", `weights/tsar-${model}.safetensors`)
    for (const id of ["cfg", "cfg-schedule", "temperature", "top-k", "top-p"]) if ($(id).value.trim()) flags.push("--" + id, $(id).value.trim())
    return $("greedy").checked ? [...flags, "--greedy"] : flags
}

// SHA-256 of the picture as a binary PPM, by the browser.
async function digest(pixels) {
    if (!globalThis.crypto?.subtle) return "this browser computes SHA-256 for pages of https and file alone"
    const sum = await crypto.subtle.digest("SHA-256", await new Blob([`P6\n${PIXELS} ${PIXELS}\n255\n`, pixels]).arrayBuffer())
    return [...new Uint8Array(sum)].map(b => b.toString(16).padStart(2, "0")).join("")
}

async function draw(l, turn) {
    const facts = l.at(".facts"), stale = () => turn !== l.turn
    Object.assign(l, { places: [], frames: new Map(), result: null, told: 0 })
    l.at("details").hidden = true, facts.classList.remove("wrong")
    const lines = await ask({ ask: "draw", lane: l.id, flags: flagsOf(l) }, line => {
        if (!line.now || stale()) return
        for (const [place, code, shown, scale] of line.now)
            l.places[place] = line.fine ? { ...l.places[place], final: code } : { pass: line.pass, shown, final: shown, scale }
        l.told = line.pass + 1, now = Math.max(now, line.pass), facts.textContent = `Pass ${line.pass}, ${line.calls} forward calls`
        l.asked ??= requestAnimationFrame(() => (l.asked = null, show(now)))
    })
    if (stale()) return
    const what = lines.at(-1).what
    if (what.error) return facts.textContent = what.error, facts.classList.add("wrong"), say(`Picture ${number(l)}: ${what.error}`, true)
    l.result = what
    l.at(".digest").textContent = await digest(await frame(l, last(l)))
    l.at(".command").textContent = what.command + " -o picture.ppm && sha256sum picture.ppm"
    l.at("details").hidden = false
    facts.textContent = `${what.passes} passes for ${what.tokens} ${what.labels ? "labels, one for all codes" : "tokens"}; ${what.calls} forward calls; ` +
        what.seconds.toFixed(2) + " s"
    if (chosen.lane === l) look(l, chosen.y, chosen.x)
}

async function drawAll(which) {
    const turn = ++run, bytes = new TextEncoder().encode($("caption").value)
    play(false), now = 0
    which.forEach(l => l.turn = turn)
    for (const l of which) {
        if (l.turn !== turn || !lanes.includes(l)) continue
        say(`Drawing picture ${number(l)} of ${lanes.length}.`)
        await draw(l, turn)
        show(Infinity)
    }
    if (turn !== run || !which.length || !which.every(l => l.result)) return
    const words = which[0].result.new.map(([at, n]) => `“${new TextDecoder().decode(bytes.subarray(at, at + n))}”`).join(", ")
    say("Done. " + (words ? `The models never saw ${words} in training; they do what they can.` : "Click on a code to see why it was chosen."))
}

function addLane(model, order) {
    const el = $("lane").content.cloneNode(true).firstElementChild, id = [...Array(MOST).keys()].find(free => !lanes.some(l => l.id === free))
    const l = { id, el, at: selector => el.querySelector(selector), places: [], frames: new Map(), result: null, told: 0, turn: 0 }
    l.at(".model").value = model, l.at(".order").value = order
    lanes.push(l), $("lanes").append(el), title()
    for (const bar of el.querySelectorAll(".ramp")) bar.style.background = `linear-gradient(90deg, ${[0, .25, .5, .75, 1].map(x => `rgb(${ramp(x)})`)})`
    el.addEventListener("change", () => (title(), run && drawAll([l])))
    l.at(".remove").onclick = () => {
        if (chosen.lane === l) chosen.lane = decisions = null, $("told").replaceChildren(make("p", "Choose a code of a picture."))
        lanes.splice(lanes.indexOf(l), 1), el.remove(), title(), show(now), $("add").focus()
        say(`The picture is removed; ${lanes.length} are left.`)
    }
    for (const grid of el.querySelectorAll(".grid"))
        grid.onclick = event => {
            const box = grid.getBoundingClientRect()
            look(l, clamp((event.clientY - box.top) / box.height * SIDE), clamp((event.clientX - box.left) / box.width * SIDE))
        }
    l.at("[role=application]").onkeydown = event => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0], " ": [0, 0] }[event.key]
        if (!step) return
        event.preventDefault()
        look(l, clamp(chosen.y + step[0]), clamp(chosen.x + step[1]))
    }
}

function title() { // names and numbers of the pictures
    const word = select => select.selectedOptions[0].text.split(":")[0]
    $("which").replaceChildren(...lanes.map((l, i) => {
        const name = `${i + 1}. ${word(l.at(".model"))}, ${word(l.at(".order"))}`
        l.at("h3").textContent = name, l.at(".remove").setAttribute("aria-label", "Remove picture " + (i + 1))
        l.at("[role=application]").setAttribute("aria-label", `Picture ${name}: 16 by 16 codes. The arrow keys choose one.`)
        l.at(".window").hidden = l.at(".order").value === "raster", l.at(".zipar").style.gridColumn = l.at(".window").hidden ? "1 / -1" : ""
        return make("option", name, { value: l.id, selected: l === chosen.lane })
    }))
    $("add").disabled = lanes.length >= MOST
}

// ---- inside one code -----------------------------------------------------------------------------------------------------
async function look(l, y, x) {
    chosen = { lane: l, y, x }
    $("which").value = l.id, $("row").value = y, $("column").value = x
    lanes.forEach(paint)
    if (!l.result) return decisions = null, $("told").replaceChildren(make("p", "This picture is not drawn yet."))
    const [answer] = await ask({ ask: "code", lane: l.id, y, x })
    if (chosen.lane !== l || chosen.y !== y || chosen.x !== x || !l.result) return
    decisions = answer.what
    const names = { draw: l.result.labels ? "label drawn" : "drawn", accept: "candidate tested", fine: "code within its label" }
    const option = (d, i) => make("option", `${i + 1}. ${names[d.purpose]}, pass ${d.pass}`, { value: i, selected: true })
    $("decision").replaceChildren(...decisions.decisions.map(option))
    explain()
}

function explain() {
    const all = decisions, d = all.decisions[+$("decision").value], l = chosen.lane, taken = d.codes.indexOf(d.code), u = d.u[0]
    const tested = d.purpose === "accept", noun = l.result.labels && d.purpose !== "fine" ? "label" : "code"
    const place = `row ${d.row}, column ${d.column}, slot ${d.slot}`
    const order = d.logits.map((_, i) => i).sort((a, b) => d.logits[b] - d.logits[a]), top = [...new Set([...order.slice(0, 8), taken])]
    const told = [["before guidance", d.cond], ["without caption", d.uncond], ["after guidance", d.logits], ["softmax", d.softmax, 1], ["top-k", d.top_k, 1],
        ["top-p", d.p, 1]].filter(c => c[1]), kept = p => p.filter(v => v > 0).length
    const canvas = height => make("canvas", "", { width: 640, height, className: "plot" }), plot = canvas(220), line = canvas(56)
    const p = (id, text, ...rest) => $(id).replaceChildren(make("p", text), ...rest), legend = text => make("p", text, { className: "legend" })
    const row = (cells, tag, set) => {
        const tr = make("tr", "", set)
        tr.append(...cells.map((text, i) => make(i === 0 ? "th" : tag, text, { scope: i === 0 && tag === "td" ? "row" : "col" })))
        return tr
    }
    const table = make("table"), scroll = make("div", "", { className: "scroll" })
    table.append(make("caption", `The likeliest of ${d.logits.length} ${noun}s`), row([noun, ...told.map(c => c[0])], "th", { className: "head" }))
    for (const i of top) {
        const cells = told.map(([, x, chance]) => chance && x[i] === 0 ? "out" : short(x[i]))
        const tr = row([d.codes[i], ...cells], "td", { className: i === taken ? "taken" : "" })
        if (noun === "code") tr.firstChild.prepend(make("span", "", { className: "swatch", style: `background: ${colour(d.codes[i])}` }))
        table.append(tr)
    }
    scroll.append(table)
    $("told").replaceChildren(make("h3", `Picture ${number(l)}, row ${chosen.y}, column ${chosen.x}: ${noun} ${d.code}`),
        make("p", `Pass ${d.pass}, token ${d.token} (${place})${d.settles ? "" : ", a candidate"}.`, { className: "soft" }))
    p("guided", d.scale[0] > 0 ? `The scale here is ${d.scale[0]} (${all.schedule}, target ${all.cfg[0]}).` : "No guidance here.", plot,
        legend(`Dots: the logit of each ${noun} after guidance, on lines from those before it. Large ones stay in the draw; the ring is around the one taken.`))
    p("cut", all.greedy ? "Greedy decoding has none of it." : `Temperature ${all.temperature[0]}; top-k ${all.top_k || "off"} keeps ${kept(d.top_k)}, ` +
        `top-p ${all.top_p[0] < 1 ? all.top_p[0] : "off"} keeps ${kept(d.p)} of ${d.logits.length}.`, scroll)
    if (all.greedy) p("drawn", `Greedy: the largest logit, that of ${noun} ${d.code}.`)
    else if (tested) p("drawn", "The candidate was drawn before; this decision tests it.")
    else p("drawn", `u = ${u} falls on ${noun} ${d.code}.`, line, legend(`The probabilities side by side, and u, the number of seed ${all.seed}, ${place}.`))
    p("tested", !tested ? "This decision is no test." : `Candidate ${d.candidate} had p = ${short(d.before[d.candidate])} when it was drawn or last tested, ` +
        `has q = ${short((d.p ?? d.logits)[d.candidate])} now; u = ${u}: it ` + (d.code === d.candidate ? "stays." : `goes, ${d.replace[0]} draws ${d.code}.`))
    plotLogits(plot, d, taken)
    if (d.p) plotDraw(line, d, taken, u)
}

const ink = name => getComputedStyle(document.documentElement).getPropertyValue(name)

// Every logit, before guidance and after it.
function plotLogits(canvas, d, taken) {
    const c = canvas.getContext("2d"), all = [...d.cond, ...d.logits], least = Math.min(...all), most = Math.max(...all)
    const x = i => 8 + (i + .5) / d.logits.length * 624, y = v => 210 - (v - least) / (most - least || 1) * 200
    c.strokeStyle = ink("--cut")
    d.logits.forEach((v, i) => {
        const stays = d.p && d.p[i] > 0
        c.beginPath(), c.moveTo(x(i), y(d.cond[i])), c.lineTo(x(i), y(v)), c.stroke()
        c.fillStyle = ink(stays ? "--accent" : "--soft"), c.beginPath(), c.arc(x(i), y(v), stays ? 5 : 2.3, 0, 7), c.fill()
    })
    c.strokeStyle = ink("--mark"), c.lineWidth = 2, c.beginPath(), c.arc(x(taken), y(d.logits[taken]), 7, 0, 7), c.stroke()
    canvas.role = "img", canvas.ariaLabel = `${d.logits.length} logits from ${short(least)} to ${short(most)}; the one taken has ${short(d.logits[taken])}.`
}

// The probabilities side by side in the order of codes, as tsar_draw walks them, and u.
function plotDraw(canvas, d, taken, u) {
    const c = canvas.getContext("2d")
    let at = 0, odd = 0
    d.p.forEach((p, i) => {
        if (p === 0) return
        c.fillStyle = ink(i === taken ? "--accent" : odd++ % 2 ? "--cut" : "--empty"), c.fillRect(8 + at * 624, 18, p * 624, 24), at += p
    })
    c.fillStyle = ink("--mark"), c.fillRect(7 + u * 624, 8, 3, 44)
    canvas.role = "img", canvas.ariaLabel = `The probabilities side by side from 0 to 1, ${d.p.filter(p => p > 0).length} of them; u is ${u}.`
}

// ---- start ---------------------------------------------------------------------------------------------------------------
for (const caption of ["two red circles", "three yellow stars above a blue ring", "four small purple squares", "a yellow triangle on a black background"])
    $("examples").append(make("button", caption, { type: "button", className: "plain", onclick: () => ($("caption").value = caption, drawAll([...lanes])) }))
$("ask").onsubmit = event => (event.preventDefault(), drawAll([...lanes]))
$("play").onclick = () => play(!playing)
$("pass").oninput = () => (now = +$("pass").value, play(false))
$("add").onclick = () => (addLane("s2", "zipar:W"), run && drawAll(lanes.slice(-1)), lanes.at(-1).at(".model").focus())
$("choose").onchange = event => {
    const l = lanes.find(l => l.id === +$("which").value)
    if (event.target !== $("decision")) l && look(l, clamp($("row").value), clamp($("column").value))
    else if (decisions) explain()
}
matchMedia("(prefers-color-scheme: dark)").onchange = () => decisions && explain()
for (const [model, order] of [["s1", "raster"], ["s2", "raster"], ["s2", "zipar-adaptive:W"], ["ctf", "raster"]]) addLane(model, order)
const files = Object.fromEntries([...document.querySelectorAll("script.file")].map(f => [f.dataset.name, f.textContent.trim()]))
ask({ ask: "start", files }).then(async lines => {
    const answers = [...lines, ...await ask({ ask: "colours", size: 3 * CODES })], wrong = answers.find(a => a.what.error)
    if (wrong) return say(wrong.what.error, true)
    colours = answers.at(-1).pixels
    say("Ready: the library's self-check of this machine's arithmetic passed. Press Draw.")
})
