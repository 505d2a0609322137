// The library in a thread of its own: a system of read-only files for it, and the messages between it and the page. It computes nothing.
let memory, tsar, tell, partial = "" // tell: what becomes of a line of the answer
const files = new Map() // path -> base64, or its bytes once it was opened
const open = new Map() // descriptor -> { bytes, at }
const decoder = new TextDecoder()
const bytes = at => new Uint8Array(memory.buffer, at)
const view = () => new DataView(memory.buffer)
const [OK, EBADF, ENOENT, ENOSYS] = [0, 8, 44, 52]

function unpack(base64) {
    const text = atob(base64), out = new Uint8Array(text.length)
    for (let i = 0; i < out.length; i++) out[i] = text.charCodeAt(i)
    return out
}

function each(list, n, use) { // the pieces of an iovec; returns how many bytes use took
    let sum = 0
    for (let i = 0; i < n; i++) sum += use(view().getUint32(list + 8 * i, true), view().getUint32(list + 8 * i + 4, true))
    return sum
}

const wasi = { // what wasi-libc asks of its host (wasi_snapshot_preview1): standard output, a folder ".", files to read, a clock
    fd_prestat_get(fd, out) {
        if (fd !== 3) return EBADF
        view().setUint32(out, 0, true), view().setUint32(out + 4, 1, true)
        return OK
    },
    fd_prestat_dir_name(fd, path) { return bytes(path)[0] = 46, OK },
    fd_fdstat_get(fd, out) {
        bytes(out).fill(0, 0, 24)
        view().setUint8(out, fd < 3 ? 2 : fd === 3 ? 3 : 4), view().setBigUint64(out + 8, ~0n, true), view().setBigUint64(out + 16, ~0n, true)
        return OK
    },
    path_open(folder, lookup, path, length, flags, rights, inheriting, fdflags, out) {
        const name = decoder.decode(bytes(path).slice(0, length))
        if (!files.has(name) || flags) return ENOENT
        if (typeof files.get(name) === "string") files.set(name, unpack(files.get(name)))
        let fd = 4
        while (open.has(fd)) fd++
        open.set(fd, { bytes: files.get(name), at: 0 }), view().setUint32(out, fd, true)
        return OK
    },
    fd_close(fd) { return open.delete(fd) ? OK : EBADF },
    fd_seek(fd, offset, whence, out) {
        const f = open.get(fd)
        if (!f) return EBADF
        f.at = Number(offset) + [0, f.at, f.bytes.length][whence], view().setBigUint64(out, BigInt(f.at), true)
        return OK
    },
    fd_read(fd, list, n, out) {
        const f = open.get(fd)
        if (!f) return EBADF
        view().setUint32(out, each(list, n, (at, size) => {
            const piece = f.bytes.subarray(f.at, f.at + size)
            bytes(at).set(piece), f.at += piece.length
            return piece.length
        }), true)
        return OK
    },
    fd_write(fd, list, n, out) {
        view().setUint32(out, each(list, n, (at, size) => (partial += decoder.decode(bytes(at).slice(0, size), { stream: true }), size)), true)
        const lines = partial.split("\n")
        partial = lines.pop()
        for (const line of lines) if (line) tell(JSON.parse(line))
        return OK
    },
    clock_time_get(id, precision, out) { return view().setBigUint64(out, BigInt(Math.round(performance.now() * 1e6)), true), OK },
    proc_exit(status) { throw new Error("the library ended with status " + status) },
}
const host = new Proxy(wasi, { get: (calls, name) => calls[name] || (() => ENOSYS) })

onmessage = async ({ data }) => {
    const { id, ask } = data
    const answer = (what, pixels) => postMessage({ id, ask, what, pixels }, pixels ? [pixels.buffer] : [])
    const copy = (at, size) => at ? bytes(at).slice(0, size) : null
    tell = what => answer(what)
    try {
        if (ask === "start") {
            for (const name in data.files) files.set(name, data.files[name])
            const module = await WebAssembly.instantiate(unpack(files.get("tsar.wasm")), { wasi_snapshot_preview1: host })
            tsar = module.instance.exports, memory = tsar.memory
            tsar._initialize(), tsar.page_start()
        } else if (ask === "draw") {
            const text = new TextEncoder().encode(data.flags.map(f => f.replaceAll("\0", "") + "\0").join(""))
            bytes(tsar.page_room(text.length)).set(text)
            tsar.page_draw(data.lane, data.flags.length)
        } else if (ask === "code") tsar.page_code(data.lane, data.y, data.x)
        else if (ask === "frame") answer({ pass: data.pass }, copy(tsar.page_frame(data.lane, data.pass), data.size))
        else if (ask === "colours") answer({}, copy(tsar.page_colours(), data.size))
        answer({ end: true })
    } catch (error) { answer({ error: String(error) }), answer({ end: true }) }
}
