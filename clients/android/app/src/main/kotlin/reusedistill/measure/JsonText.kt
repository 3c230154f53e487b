package reusedistill.measure

/** JSON of maps, lists, texts, numbers, booleans and null. Numbers that are none (NaN, infinite) are refused. */
internal fun jsonText(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

private fun write(value: Any?, into: StringBuilder) {
    when (value) {
        null, is Boolean -> into.append(value)
        is Int, is Long -> into.append(value)
        is Double -> {
            require(value.isFinite()) { "$value in a result" }
            // Whole numbers of a request come back as such.
            if (value == Math.rint(value) && Math.abs(value) < 1e15) into.append(value.toLong()) else into.append(value)
        }
        is String -> quoted(value, into)
        is Map<*, *> -> joined(value.entries, '{', '}', into) { (key, item) ->
            quoted(key.toString(), into)
            into.append(':')
            write(item, into)
        }
        is Iterable<*> -> joined(value, '[', ']', into) { write(it, into) }
        else -> throw IllegalArgumentException("${value::class} in a result")
    }
}

private fun <T> joined(items: Iterable<T>, open: Char, close: Char, into: StringBuilder, each: (T) -> Unit) {
    into.append(open)
    for ((index, item) in items.withIndex()) {
        if (index > 0) into.append(',')
        each(item)
    }
    into.append(close)
}

private fun quoted(text: String, into: StringBuilder) {
    into.append('"')
    for (c in text) {
        if (c == '"' || c == '\\') into.append('\\').append(c)
        else if (c < ' ') into.append("\\u%04x".format(c.code))
        else into.append(c)
    }
    into.append('"')
}
