"""Tab completion: ``eval "$(cosmos-distill completion bash)"``.

The options depend on the recipe, so the shell's function asks for the list the first time a recipe is
completed and keeps it, by path and time of change; later completions start no Python.
"""

from __future__ import annotations

from collections.abc import Sequence

from cosmos_distill.errors import Refusal

BASH = r"""_cosmos_distill() {
    local cur=${COMP_WORDS[COMP_CWORD]} recipe= word kept stamp options
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word == *.py && -f $word ]] && recipe=$word && break
    done
    if [[ -z $recipe ]]; then
        local words="encode generate eval export plan launch sweep inspect sample consolidate"
        words+=" doctor completion"
        (( COMP_CWORD > 1 )) && words=
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
        COMPREPLY+=($(compgen -f -X '!*.py' -- "$cur") $(compgen -d -S / -- "$cur"))
        compopt -o nospace 2>/dev/null
        return
    fi
    kept=${XDG_CACHE_HOME:-$HOME/.cache}/cosmos-distill
    stamp=$(stat -c '%Y' "$recipe" 2>/dev/null || stat -f '%m' "$recipe")
    kept=$kept/$(printf '%s' "$PWD/$recipe" | cksum | cut -d' ' -f1)-$stamp
    options=$(cat "$kept" 2>/dev/null)
    if [[ -z $options ]]; then
        options=$(cosmos-distill "$recipe" --help 2>/dev/null | grep -oE -- '--[a-z][a-z0-9._-]+' | sort -u)
        # Where they cannot be kept, they are asked for again the next time.
        ( mkdir -p "${kept%/*}" && printf '%s\n' "$options" > "$kept" ) 2>/dev/null
    fi
    if [[ $cur == --* || -z $cur ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    else
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}
complete -F _cosmos_distill cosmos-distill"""


def script(args: Sequence[str]) -> str:
    """The completion script of a shell.

    Raises:
        Refusal: a shell other than bash.
    """
    if list(args) != ["bash"]:
        raise Refusal("completion knows bash only (zsh reads it after `autoload bashcompinit; bashcompinit`)")
    return BASH
