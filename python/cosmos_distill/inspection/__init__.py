"""``cosmos-distill inspect``: what a folder of clips holds, as a page to decide with."""
