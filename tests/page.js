// The page held against the command line; last line: N passed, N failed.
//     page.js digests PAGE TSAR [all]                  its worker under node: every model, order and caption, or all their combinations
//     page.js browser PAGE TSAR CHROMIUM [FOLDER]      every control in headless Chromium, without a console error; screenshots into FOLDER
"use strict"
const fs = require("fs"), os = require("os"), path = require("path"), vm = require("vm"), zlib = require("zlib")
const { spawn, execFileSync } = require("child_process"), { createHash } = require("crypto")
const [what, page, tsar, chromium, folder] = process.argv.slice(2)
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "page-"))
let passed = 0, failed = 0
const check = (good, name) => (good ? passed++ : (failed++, console.log("FAILED " + name)), good)

// The digest of the PPM that the command line writes.
function digest(flags) {
    const file = path.join(scratch, "picture.ppm")
    const model = flags.includes("--model") || flags.includes("-m") ? [] : ["-m", "weights/tsar-s2.safetensors"]
    execFileSync(tsar, ["generate", "-q", "-o", file, ...model, ...flags])
    return createHash("sha256").update(fs.readFileSync(file)).digest("hex")
}

// The pixels of a picture that the command line wrote: PPM, or a PNG of 8 bits without an alpha channel.
function pixelsOf(file, bytes = fs.readFileSync(file)) {
    if (file.endsWith(".ppm")) return bytes.subarray(15)
    const parts = [], width = 3 * bytes.readUInt32BE(16), height = bytes.readUInt32BE(20), out = Buffer.alloc(width * height)
    for (let at = 8, size; at < bytes.length; at += size + 12) {
        size = bytes.readUInt32BE(at)
        if (bytes.toString("latin1", at + 4, at + 8) === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + size))
    }
    const rows = zlib.inflateSync(Buffer.concat(parts)), width1 = width + 1
    const paeth = (a, b, c) => [a, b, c].reduce((best, v) => (Math.abs(a + b - c - v) < Math.abs(a + b - c - best) ? v : best))
    for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
            const at = y * width + x, left = x > 2 ? out[at - 3] : 0, up = y > 0 ? out[at - width] : 0, corner = x > 2 && y > 0 ? out[at - width - 3] : 0
            out[at] = rows[y * width1 + 1 + x] + [0, left, up, (left + up) >> 1, paeth(left, up, corner)][rows[y * width1]]
        }
    return out
}

// The words of a command line as a shell reads them: blanks divide, quotes hold together.
const words = command => [...command.matchAll(/(?:'[^']*'|\\.|[^\s'\\])+/g)].map(([w]) => w.replace(/'([^']*)'|\\(.)/g, (_, a, b) => a ?? b))

const captions = ["three yellow stars above a blue ring", "a red circle", "two green squares", "a blue ring left of a green star",
    "four small purple squares", "a yellow triangle on a black background", "a purple elephant", "", "ein grüner Kreis", "it's \"quoted\" \\ twice"]
const models = ["s1", "s2", "s4", "ctf"], orders = ["raster", "zipar:1", "zipar:3", "zipar:2,first-row", "zipar-adaptive:2"]

// ---- under node ----------------------------------------------------------------------------------------------------------

function openWorker(html) {
    const at = id => html.indexOf(`<script type="text/plain" ${id}`)
    const part = (id, from = at(id)) => html.slice(html.indexOf("\n", from) + 1, html.indexOf("</script>", from)).trim()
    const names = ["tsar.wasm", ...models.map(m => `weights/tsar-${m}.safetensors`)]
    const files = Object.fromEntries(names.map(n => [n, part(`class="file" data-name="${n}"`)]))
    const world = { TextDecoder, TextEncoder, performance, WebAssembly, atob }
    let lines, end
    world.postMessage = m => (m.what.end ? end(lines) : lines.push(m))
    vm.runInNewContext(part('id="worker"'), world)
    const ask = data => new Promise(resolve => (lines = [], end = resolve, world.onmessage({ data })))
    return { ask, start: () => ask({ ask: "start", files }) }
}

async function digests() {
    const worker = openWorker(fs.readFileSync(page, "utf8"))
    check((await worker.start()).length === 0, "the library starts")
    for (const [m, model] of models.entries())
        for (const [o, order] of orders.entries())
            for (const [c, caption] of captions.entries()) {
                if (chromium !== "all" && c !== (5 * m + o) % captions.length) continue // each caption twice
                const flags = ["--prompt", caption, "--seed", String(c), "--decode", order]
                if (model !== "s2") flags.push("--model", `weights/tsar-${model}.safetensors`)
                const answer = (await worker.ask({ ask: "draw", lane: 0, flags })).at(-1).what
                const { pixels } = (await worker.ask({ ask: "frame", lane: 0, pass: answer.passes - (answer.labels ? 0 : 1), size: 3 * 128 * 128 }))[0]
                const told = createHash("sha256").update("P6\n128 128\n255\n").update(pixels ?? "").digest("hex")
                check(told === digest(flags), `${flags.join(" ")}: ${answer.error ?? told}`)
                if (order === "raster") check(told === digest(words(answer.command).slice(2)), `the command ${answer.command}`)
            }
    await decisions(worker)
}

// What the page tells of a code is what the library decided: its own functions again, here in JavaScript.
async function decisions(worker) {
    const guided = ["--cfg", "3", "--cfg-schedule", "half-linear", "--top-k", "20", "--top-p", "0.9"]
    for (const [model, order, extra] of [["s2", "zipar-adaptive:1", guided], ["ctf", "raster", []], ["s4", "raster", ["--greedy"]]]) {
        const flags = ["--prompt", "two green squares", "--decode", order, "--model", `weights/tsar-${model}.safetensors`, ...extra]
        const picture = (await worker.ask({ ask: "draw", lane: 1, flags })).at(-1).what, s = Math.log2(picture.side)
        const tests = []
        for (let place = 0; place < 256; place += 8) {
            const { decisions } = (await worker.ask({ ask: "code", lane: 1, y: place >> 4, x: place & 15 }))[0].what
            for (const d of decisions) {
                tests.push(d.purpose)
                const index = d.codes.indexOf(d.code)
                check(!d.uncond || d.logits.every((v, i) => v === d.uncond[i] + (d.cond[i] - d.uncond[i]) * d.scale[0]), `guidance of ${model} at ${place}`)
                if (extra.includes("--top-k")) check(d.top_k.filter(p => p > 0).length === 20 && d.p.filter(p => p > 0).length <= 20, `top-k at ${place}`)
                if (!d.p) check(d.logits.every(v => v <= d.logits[index]), `the largest logit at ${place}`)
                let total = 0, running = 0
                if (d.p) d.p.forEach(p => (total += p))
                if (d.p && d.purpose !== "accept") check(d.p.findIndex(p => (running += p) > d.u[0] * total) === index, `the draw of ${model} at ${place}`)
                if (d.purpose === "accept") check((d.code === d.candidate) >= (d.u[0] * d.before[d.candidate] < d.p[d.candidate]), `the test at ${place}`)
            }
            const token = (place >> 4 >> s) * picture.columns + ((place & 15) >> s)
            check(decisions.at(-1).pass === (picture.labels ? picture.passes : picture.step_of[token]), `the pass of ${place}`)
        }
        check(tests.includes(model === "s2" ? "accept" : model === "ctf" ? "fine" : "draw"), "the kinds of decisions: " + [...new Set(tests)])
    }
    for (const [model, order, pass] of [["s2", "zipar:2", 7], ["ctf", "raster", 100], ["ctf", "zipar:4", 76]]) { // as --frames writes them
        const flags = ["--prompt", "two green squares", "--decode", order, "--model", `weights/tsar-${model}.safetensors`]
        execFileSync(tsar, ["generate", "-q", "-o", path.join(scratch, "picture.ppm"), "--frames", scratch, ...flags])
        const file = fs.readdirSync(scratch).find(f => f.startsWith("frame-" + String(pass).padStart(4, "0")))
        await worker.ask({ ask: "draw", lane: 2, flags })
        const { pixels } = (await worker.ask({ ask: "frame", lane: 2, pass, size: 3 * 128 * 128 }))[0]
        check(file && pixelsOf(path.join(scratch, file)).equals(Buffer.from(pixels)), `${model} ${order}: the picture after pass ${pass}`)
    }
    const broken = await worker.ask({ ask: "draw", lane: 1, flags: ["--decode", "zipar:0", "--prompt", "x"] })
    check(/window must be a positive integer/.test(broken.at(-1).what.error), "an error is told: " + JSON.stringify(broken))
}

// ---- in Chromium ---------------------------------------------------------------------------------------------------------

// The devtools protocol over a pipe: JSON with a zero byte behind it.
function openBrowser() {
    const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--user-data-dir=" + scratch]
    const browser = spawn(chromium, [...flags, "about:blank"], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] })
    const waiting = new Map(), events = []
    let rest = "", n = 0, session
    browser.stdio[4].setEncoding("utf8").on("data", data => {
        const messages = (rest + data).split("\0")
        rest = messages.pop()
        for (const message of messages.map(m => JSON.parse(m))) {
            if (!message.id) events.push(message)
            else if (message.error) waiting.get(message.id).reject(new Error(JSON.stringify(message.error)))
            else waiting.get(message.id).resolve(message.result)
        }
    })
    const send = (method, params = {}) => new Promise((resolve, reject) => {
        waiting.set(++n, { resolve, reject })
        browser.stdio[3].write(JSON.stringify({ id: n, method, params, sessionId: session }) + "\0")
    })
    const attach = async () => {
        const { targetId } = await send("Target.createTarget", { url: "about:blank" })
        session = (await send("Target.attachToTarget", { targetId, flatten: true })).sessionId
        for (const domain of ["Page", "Runtime", "Log", "Network"]) await send(domain + ".enable")
    }
    const run = async expression => {
        const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true })
        if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? expression)
        return result.value
    }
    const until = async (expression, seconds = 60) => {
        for (const end = Date.now() + 1000 * seconds; Date.now() < end; await new Promise(r => setTimeout(r, 50))) if (await run(expression)) return true
        return check(false, "never came true: " + expression + " (" + await run("document.getElementById('status').textContent") + ")")
    }
    const shot = async name => {
        if (!folder) return
        const [width, height] = await run("[innerWidth, document.documentElement.scrollHeight]")
        for (let y = 0; y < height; y += 1200) {
            const clip = { x: 0, y, width, height: Math.min(1200, height - y), scale: 1 }
            const { data } = await send("Page.captureScreenshot", { format: "png", captureBeyondViewport: true, clip })
            fs.writeFileSync(path.join(folder, `${name}-${y / 1200}.png`), data, "base64")
        }
    }
    return { send, attach, run, until, shot, events, close: () => new Promise(r => (browser.on("exit", r), browser.kill("SIGKILL"))) }
}

// The picture numbered n is told, its digest and command are those of the command line.
async function proven(b, n, what) {
    await b.until(`lanes[${n}].result && !lanes[${n}].at("details").hidden`)
    const [told, command, facts] = await b.run(`[".digest", ".command", ".facts"].map(part => lanes[${n}].at(part).textContent)`)
    const flags = words(command.replace(/ -o picture.ppm && sha256sum picture.ppm$/, "")).slice(2)
    return check(told === digest(flags), `${what}: ${told}, ${command}`) && { flags, facts }
}

// Types into a field as a user does; keys: pressed behind it.
async function type(b, id, text) {
    await b.run(`$("${id}").focus(), $("${id}").select?.()`)
    await b.send("Input.insertText", { text })
    await b.run(`$("${id}").dispatchEvent(new Event("change", { bubbles: true }))`)
}

const choose = (b, field, value) => b.run(`(f => (f.value = ${JSON.stringify(value)}, f.dispatchEvent(new Event("change", { bubbles: true }))))(${field})`)
const press = async (b, key, code = 0) => {
    for (const type of ["keyDown", "keyUp"]) await b.send("Input.dispatchKeyEvent", { type, key, code: key, windowsVirtualKeyCode: code })
}

async function click(b, element, across = 0.5, down = 0.5) {
    const [left, top, width, height] = await b.run(`(e => (e.scrollIntoView({ block: "center" }), e.getBoundingClientRect().toJSON()))(${element})`)
        .then(r => [r.x, r.y, r.width, r.height]), x = left + across * width, y = top + down * height
    for (const type of ["mousePressed", "mouseReleased"]) await b.send("Input.dispatchMouseEvent", { type, x, y, button: "left", clickCount: 1 })
}

const done = b => b.until("/^Done/.test($('status').textContent)")

async function drawing(b) {
    await click(b, "$('draw')")
    await b.until("/^Drawing/.test($('status').textContent) && lanes[0].told > 3 && lanes[0].told < 250", 20) // codes appear while it goes on
    await done(b)
    for (let n = 0; n < 4; n++) await proven(b, n, "the pictures that are there first")
    await click(b, "$('examples').querySelector('button')")
    await done(b)
    const first = await proven(b, 0, "an example")
    check(first.flags.includes("two red circles"), "an example's caption: " + first.flags)
    await type(b, "caption", "a purple elephant")
    await type(b, "seed", "7")
    await press(b, "Enter", 13)
    await b.run("$('ask').requestSubmit()")
    await done(b)
    check(/never saw “elephant”/.test(await b.run("$('status').textContent")), "a new word is named")
    check((await proven(b, 1, "another seed")).flags.includes("7"), "the seed")
}

async function settings(b) {
    await b.run("document.querySelector('details').open = true, lanes.slice(2).reverse().forEach(l => l.at('.remove').click())")
    check(await b.run("lanes.length === 2 && document.activeElement === $('add') && /2 are left/.test($('status').textContent)"), "pictures are removed")
    await choose(b, "lanes[0].at('.model')", "s4") // the quickest
    await done(b)
    const wanted = { cfg: "4.5", temperature: "0.9", "top-k": "30", "top-p": "0.95" }
    for (const id in wanted) await type(b, id, wanted[id])
    await choose(b, "$('cfg-schedule')", "half-linear")
    await b.run("$('caption').value = 'two green squares', $('ask').requestSubmit()")
    await done(b)
    const { flags } = await proven(b, 1, "settings")
    for (const id in wanted) check(flags[flags.indexOf("--" + id) + 1] === wanted[id], "the setting " + id)
    check(/guidance scale 1 to 4.5/.test(await b.run("lanes[1].at('.scales').textContent")), "scales are told")
    await click(b, "$('greedy')")
    await b.run("$('ask').requestSubmit()")
    await done(b)
    check((await proven(b, 0, "greedy")).flags.includes("--greedy"), "greedy decoding")
    await b.run("look(lanes[0], 3, 3)")
    await b.until("/^Greedy/.test($('drawn').textContent)")
    await click(b, "$('greedy')")
    for (const id in wanted) await b.run(`$("${id}").value = ""`)
    await b.run("$('seed').value = 'x', $('ask').requestSubmit()")
    await b.until("/--seed x: give a whole number/.test($('status').textContent) && /whole number/.test(lanes[1].at('.facts').textContent)")
    await b.run("$('seed').value = '2', $('ask').requestSubmit()")
    await done(b)
}

async function choices(b) {
    const wanted = [["s2", "zipar:W", "3", 29], ["ctf", "zipar:W,first-row", "2", 60], ["s4", "raster", "", 16], ["s1", "zipar-adaptive:W", "4", 0]]
    for (const [model, order, width, passes] of wanted) {
        await choose(b, "lanes[1].at('.model')", model)
        await done(b)
        await choose(b, "lanes[1].at('.order')", order)
        await done(b)
        if (width) await choose(b, "lanes[1].at('.width')", width)
        await done(b)
        const { facts, flags } = await proven(b, 1, model + " " + order)
        check(flags.at(-1) === order.replace("W", width) && (!passes || facts.startsWith(passes + " passes")), `${model} ${order}: ${facts} ${flags}`)
    }
    await choose(b, "lanes[1].at('.width')", "0")
    await b.until("/window must be a positive integer/.test(lanes[1].at('.facts').textContent)")
    await choose(b, "lanes[1].at('.width')", "2")
    await done(b)
    for (let n = 3; n <= 8; n++) await b.run("$('add').click()")
    check(await b.run("lanes.length === 8 && $('add').disabled"), "at most eight pictures")
    await done(b)
    await proven(b, 7, "an added picture")
    await b.run("lanes.slice(3).reverse().forEach(l => l.at('.remove').click())")
    await choose(b, "lanes[2].at('.model')", "ctf")
    await done(b)
}

async function passes(b) {
    await b.run("$('pass').focus(), $('pass').value = 5, $('pass').dispatchEvent(new Event('input'))")
    await b.until("lanes.every(l => l.frames.has(Math.min(5, last(l))))")
    check(/^Pass 5 of/.test(await b.run("$('passes').textContent")), "the pass is told")
    await press(b, "ArrowRight", 39)
    check(await b.run("now === 6"), "the slider moves by keys")
    await click(b, "$('play')")
    await b.until("now > 8") // it may be at the end by now
    await b.shot("playing")
    check(await b.run("play(false), show(0), $('play').click(), $('play').textContent === 'Pause' && playing > 0"), "it plays")
    check(await b.run("$('play').click(), $('play').textContent === 'Play' && !playing"), "it pauses")
    await b.run("show(+$('pass').max - 2), $('play').click()")
    await b.until("!playing && now === +$('pass').max")
}

async function inside(b) {
    const told = () => b.run("$('told').textContent")
    await click(b, "lanes[0].at('[data-map=picture]')", 5.5 / 16, 6.5 / 16)
    await b.until("/Picture 1, row 6, column 5: code/.test($('told').textContent)")
    await click(b, "lanes[0].at('[data-map=pass]')", 0.5 / 16, 3.5 / 16)
    await b.until("/row 3, column 0/.test($('told').textContent)")
    await click(b, "lanes[1].at('[data-map=scale]')", 15.5 / 16, 15.5 / 16)
    await b.until("/Picture 2, row 15, column 15/.test($('told').textContent)")
    await b.run("lanes[1].at('[role=application]').focus()")
    const codes = { ArrowUp: 38, ArrowLeft: 37, ArrowDown: 40, ArrowRight: 39, Enter: 13 }
    for (const key of ["ArrowUp", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "Enter"]) await press(b, key, codes[key])
    await b.until("/Picture 2, row 15, column 14/.test($('told').textContent)")
    await type(b, "row", "4")
    await type(b, "column", "0")
    await b.until("/row 4, column 0/.test($('told').textContent)")
    await choose(b, "$('which')", await b.run("String(lanes[1].id)"))
    await b.until("/Picture 2, row 4, column 0/.test($('told').textContent) && $('decision').options.length > 1")
    await choose(b, "$('decision')", "1")
    check(/Candidate \d+ had p = .*(stays|goes)/.test(await b.run("$('tested').textContent")), "a test is explained: " + await told())
    await choose(b, "$('decision')", "0")
    check(/u = 0\.\d+ falls on code/.test(await b.run("$('drawn').textContent")), "a draw is explained")
    check(await b.run("$('cut').querySelectorAll('tr').length >= 9 && $('guided').querySelector('canvas').ariaLabel.includes('logits')"), "logits are shown")
    await choose(b, "$('which')", await b.run("String(lanes[2].id)"))
    await b.until("/Picture 3/.test($('told').textContent) && /label drawn.*within its label/.test($('decision').textContent)")
}

// Of #rgb or #rrggbb (WCAG 2).
function luminance(colour) {
    const hex = colour.trim().slice(1), size = hex.length / 3
    return [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
        const v = parseInt(hex.slice(i * size, (i + 1) * size).repeat(2 / size), 16) / 255
        return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    }, 0)
}

// Every control has a name for a screen reader, every text enough contrast, nothing is wider than the screen.
async function appearance(b) {
    const { nodes } = await b.send("Accessibility.getFullAXTree")
    const named = nodes.filter(n => !n.ignored && /^(button|textbox|combobox|slider|checkbox|spinbutton|application|region|img)$/.test(n.role?.value))
    for (const n of named) check(n.name?.value, `${n.role.value} has a name: ${JSON.stringify(n)}`)
    check(named.length > 40, named.length + " controls")
    const pairs = ["ink paper", "ink card", "soft paper", "soft card", "soft code", "accent card", "accent paper", "on accent", "mark card"]
    for (const width of [1280, 360])
        for (const dark of [false, true]) {
            await b.send("Emulation.setDeviceMetricsOverride", { width, height: 900, deviceScaleFactor: 1, mobile: width < 600 })
            await b.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }] })
            check(await b.run("document.documentElement.scrollWidth <= innerWidth"), `nothing is wider than ${width} pixels`)
            for (const [text, ground] of pairs.map(w => w.split(" "))) {
                const [x, y] = (await b.run(`[ink("--${text}"), ink("--${ground}")]`)).map(luminance)
                const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05)
                check(ratio >= 4.5, `${text} on ${ground}, ${dark ? "dark" : "light"}: contrast ${ratio.toFixed(2)}`)
            }
            await b.shot(`${width}-${dark ? "dark" : "light"}`)
        }
}

// Without pictures, and with one that is taken away while it is looked at or drawn.
async function empty(b) {
    await b.run("lanes[0].at('[data-map=picture]').click(), lanes[0].at('.remove').click()")
    await b.run("$('decision').dispatchEvent(new Event('change', { bubbles: true }))")
    await b.run("$('ask').requestSubmit(), [...lanes].forEach(l => l.at('.remove').click()), $('ask').requestSubmit(), $('play').click()")
    await b.run("$('row').dispatchEvent(new Event('change', { bubbles: true }))")
    check(await b.run("lanes.length === 0 && $('pass').disabled"), "no picture is left")
    await b.run("$('add').click()")
    await done(b)
    await proven(b, 0, "a picture after none")
}

async function browse(b) {
    await b.attach()
    await b.send("Emulation.setDeviceMetricsOverride", { width: 1280, height: 900, deviceScaleFactor: 1, mobile: false })
    await b.send("Page.navigate", { url: "file://" + path.resolve(page) })
    await b.until("document.getElementById('status')?.textContent.startsWith('Ready')")
    for (const part of [drawing, settings, choices, passes, inside, appearance, empty]) await part(b)
    const [, { seconds }] = (await b.run("ask({ ask: 'draw', lane: 0, flags: ['--prompt', 'a red circle'] })")).slice(-2).map(l => l.what)
    console.log(`s = 2, raster: ${seconds} s`)
    for (const { method, params } of b.events) {
        const says = /^(Runtime.exceptionThrown|Runtime.consoleAPICalled|Log.entryAdded)$/.test(method)
        if (says) check(false, "the console says " + JSON.stringify(params).slice(0, 300))
        if (method === "Network.requestWillBeSent") check(/^(file|data|blob):/.test(params.request.url), "asks for " + params.request.url)
    }
}

async function inBrowser() {
    const b = openBrowser()
    await browse(b).catch(error => check(false, error.stack))
    await b.close()
}

;(what === "browser" ? inBrowser() : digests()).catch(error => check(false, error.stack)).finally(() => {
    fs.rmSync(scratch, { recursive: true, force: true, maxRetries: 20 })
    console.log(`${passed} passed, ${failed} failed`)
    process.exit(failed > 0 ? 1 : 0)
})
