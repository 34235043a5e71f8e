import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

/** Posts a body to a URL with the client of the JDK as it comes: of known length, then in chunks. */
class JavaClient {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        var body = Files.readAllBytes(Path.of(arguments[1]));
        var publishers = new HttpRequest.BodyPublisher[] {
            HttpRequest.BodyPublishers.ofByteArray(body),
            HttpRequest.BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(body)),
        };
        for (var publisher : publishers) {
            var request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "application/json").POST(publisher).build();
            System.out.println(client.send(request, BodyHandlers.ofString()).body());
        }
    }
}
