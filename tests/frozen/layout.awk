# SPDX-License-Identifier: MIT
#
# From a header of uapi/ to a C program (to be compiled with that header, or another one, on its
# include path) that prints its layout, one fact a line:
#
#	const NAME VALUE
#	size STRUCT BYTES
#	member STRUCT FIELD PARENT KIND OFFSET BYTES
#	code NAME NUMBER ERRNO LAYER RETRYABLE
#
# PARENT is the union or struct inside STRUCT that holds FIELD, "-" for none; KIND says whether
# PARENT's members follow (struct) or overlay (union) each other. It understands the subset of C that
# the header keeps to: no nested braces but of anonymous struct and union members.

{ text = text "\n" $0 }

# The statement s at the depth of a struct: its members' names.
function members(s,   n, i, part)
{
	sub(/^[ \t]*(struct[ \t]+)?[A-Za-z_0-9]+[ \t]+/, "", s)
	n = split(s, part, ",")
	for (i = 1; i <= n; i++) {
		gsub(/[ \t]|\[[^]]*\]/, "", part[i])
		add(part[i], "")
	}
}

# Note a member at this depth; below is what a nested one holds, with its paths still relative.
function add(name, below,   n, i, line, f)
{
	held[depth] = held[depth] name " - " kind[depth] "\n"
	n = split(below, line, "\n")
	for (i = 1; i < n; i++) {
		split(line[i], f, " ")
		held[depth] = held[depth] name "." f[1] " " (f[2] == "-" ? name : name "." f[2]) " " f[3] "\n"
	}
}

END {
	# Comments go; they may span lines. Then constants by the line, structs by the statement.
	while ((a = index(text, "/*")) > 0) {
		b = index(substr(text, a + 2), "*/")
		text = substr(text, 1, a - 1) " " substr(text, a + b + 3)
	}
	print "#include <errno.h>\n#include <stddef.h>\n#include <stdio.h>\n#include \"onebit.h\""
	print "static void number(const char *n, long long v) { printf(\"const %s %lld\\n\", n, v); }"
	print "static void string(const char *n, const char *v) { printf(\"const %s %s\\n\", n, v); }"
	print "#define SIZE(s) printf(\"size %s %zu\\n\", #s, sizeof(struct s))"
	print "#define AT(s, f, p, k) printf(\"member %s %s %s %s %zu %zu\\n\", #s, #f, p, k, \\"
	print "\toffsetof(struct s, f), sizeof(((struct s *)0)->f))"
	print "#define CODE(n, nr, e, l, r, t) printf(\"code %s %d %d %d %d\\n\", #n, nr, e, ONEBIT_LAYER_##l, r);"
	print "int main(void)\n{"
	n = split(text, line, "\n")
	for (i = 1; i <= n; i++) {
		if (line[i] ~ /^#define[ \t]+ONEBIT_[A-Z0-9_]+[ \t]+[^ \t]/) {
			split(line[i], f, /[ \t]+/)
			printf "\t_Generic((%s), char *: string, default: number)(\"%s\", %s);\n", f[2], f[2], f[2]
		}
		if (line[i] !~ /^#/ && line[i] !~ /^ONEBIT_/)
			code = code " " line[i]
	}
	gsub(/[;{}]/, "&\n", code)
	n = split(code, line, "\n")
	depth = 0
	for (i = 1; i <= n; i++) {
		s = line[i]
		gsub(/^[ \t]+/, "", s)
		if (s ~ /\{$/) {
			if (depth == 0) {
				top = ""
				if (match(s, /struct[ \t]+onebit_[a-z_0-9]+[ \t]*\{$/)) {
					top = substr(s, RSTART)
					gsub(/struct|[ \t{]/, "", top)
				}
			}
			depth++
			kind[depth] = s ~ /^union/ ? "union" : "struct"
			held[depth] = ""
		} else if (s ~ /^\}$/) {
			below = held[depth--]
			closed = 1
			if (depth == 0 && top != "") {
				print "\tSIZE(" top ");"
				m = split(below, row, "\n")
				for (j = 1; j < m; j++) {
					split(row[j], f, " ")
					printf "\tAT(%s, %s, \"%s\", \"%s\");\n", top, f[1], f[2], f[3]
				}
			}
			continue
		} else if (s ~ /;$/ && depth > 0) {
			sub(/;$/, "", s)
			if (closed)
				add(s, below)
			else
				members(s)
		}
		closed = 0
	}
	print "\tONEBIT_CODES(CODE)\n\treturn 0;\n}"
}
