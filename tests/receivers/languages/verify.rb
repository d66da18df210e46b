# Runs the `verify` of a page of docs/receivers on requests, and prints what it says of each.

require "json"

load ARGV[0]
asked = JSON.parse(STDIN.read)
said = asked["cases"].to_h do |one|
  one["body"] = one["body"].unpack1("m")
  begin
    [one["name"], verify(*one.values_at(*asked["arguments"]))]
  rescue StandardError => why
    [one["name"], "#{why.class}: #{why}"]
  end
end
puts JSON.generate(said)
