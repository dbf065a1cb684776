"""Completion for bash and zsh: a script of the verbs, which asks a verb for its options when they are first wanted."""

from collections.abc import Sequence

from curator.console import CONSOLE_COMMAND

SHELLS = ("bash", "zsh")

# Options are read from the help, so that no list of them is kept and no start of the command becomes slower; a shell
# keeps what it read. Anything else is completed as a file name (-o default).
_SCRIPT = """\
_{name}() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" verb="${{COMP_WORDS[1]}}" place=1 at key kind words=""
    [ "$verb" = lab ] && place=2
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs} lab completion"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "$verb" = lab ]; then
        words="{lab}"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "$verb" = completion ]; then
        words="{shells}"
    elif [[ "$word" == -* ]]; then
        # A verb may have commands of its own (evaluate behaviour), whose options are theirs.
        at=$((place + 1))
        kind="${{COMP_WORDS[at]}}"
        [ "$at" -lt "$COMP_CWORD" ] && [[ "$kind" =~ ^[a-z-]+$ ]] && [[ "$kind" != -* ]] || kind=""
        key="_{name}_options_${{COMP_WORDS[*]:1:$place}}_$kind"
        key="${{key//[^a-zA-Z_]/_}}"
        eval "words=\\"\\${{$key-}}\\""
        if [ -z "$words" ]; then
            words="$(_{name}_read "${{COMP_WORDS[@]:1:$place}}" $kind)"
            [ -n "$words" ] || words="$(_{name}_read "${{COMP_WORDS[@]:1:$place}}")"
            eval "$key=\\$words"
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
_{name}_read() {{
    local text
    text="$({name} "$@" --help-all 2>/dev/null)" || text="$({name} "$@" --help 2>/dev/null)"
    printf '%s\\n' "$text" | sed -nE 's/^  (-[^ ].*)/\\1/p' | sed -E 's/  .*//' \\
        | grep -oE -- '--[a-z][a-z0-9-]*' | sort -u
}}
complete -o default -F _{name} {name}
"""


def script(shell: str, verbs: Sequence[str], lab: Sequence[str]) -> str:
    """The script for one of `SHELLS`; zsh runs that of bash."""
    text = _SCRIPT.format(name=CONSOLE_COMMAND, verbs=" ".join(verbs), lab=" ".join(lab), shells=" ".join(SHELLS))
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text
