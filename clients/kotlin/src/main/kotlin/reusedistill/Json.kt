package reusedistill

/** Reads a JSON text into maps, lists, strings, doubles, booleans and null; whole numbers are doubles too. */
internal class Json private constructor(private val text: String) {
    private var at = 0

    private fun value(): Any? {
        space()
        return when (val c = peek()) {
            '{' -> members()
            '[' -> elements()
            '"' -> string()
            else -> if (c == '-' || c.isDigit()) number() else word()
        }
    }

    private fun members(): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        at++
        while (!closes('}', found.isEmpty())) {
            space()
            val key = string()
            space()
            expect(':')
            found[key] = value()
        }
        return found
    }

    private fun elements(): List<Any?> {
        val found = ArrayList<Any?>()
        at++
        while (!closes(']', found.isEmpty())) found.add(value())
        return found
    }

    /** Whether the collection ends here; otherwise its comma has been read, where one must stand. */
    private fun closes(end: Char, first: Boolean): Boolean {
        space()
        if (peek() == end) {
            at++
            return true
        }
        if (!first) expect(',')
        return false
    }

    private fun string(): String {
        expect('"')
        val found = StringBuilder()
        while (peek() != '"') {
            val c = text[at++]
            found.append(if (c == '\\') escaped() else c)
        }
        at++
        return found.toString()
    }

    private fun escaped(): Char = when (val c = text[at++]) {
        'n' -> '\n'
        't' -> '\t'
        'r' -> '\r'
        'b' -> '\b'
        'f' -> '\u000c'
        'u' -> text.substring(at, at + 4).toInt(16).toChar().also { at += 4 }
        else -> c
    }

    private fun number(): Double {
        val start = at
        while (at < text.length && (text[at].isLetterOrDigit() || text[at] in "+-.")) at++
        return text.substring(start, at).toDouble()
    }

    private fun word(): Any? {
        for ((name, value) in listOf("true" to true, "false" to false, "null" to null)) {
            if (text.startsWith(name, at)) {
                at += name.length
                return value
            }
        }
        throw ClientException("JSON: '${peek()}' at $at")
    }

    private fun peek(): Char = text.getOrElse(at) { throw ClientException("JSON: the text ends at $at") }

    private fun expect(c: Char) {
        if (peek() != c) throw ClientException("JSON: '$c' expected at $at, found '${peek()}'")
        at++
    }

    private fun space() {
        while (at < text.length && text[at].isWhitespace()) at++
    }

    companion object {
        fun parse(text: String): Any? {
            val reader = Json(text)
            val found = reader.value()
            reader.space()
            if (reader.at != text.length) throw ClientException("JSON: more text at ${reader.at}")
            return found
        }
    }
}
