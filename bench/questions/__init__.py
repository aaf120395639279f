"""Questions: what people come with. `ask` varies what they name and keeps the rest equal; `why` takes two contenders apart."""
